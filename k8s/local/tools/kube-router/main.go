// kube-router's firewall, which enforces NetworkPolicies, without its router and its service proxy. Its libraries have
// the versions of ../metrics-server: almost all of it is then compiled already. The whole program has 150 packages more.
package main

import (
	"sync"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"github.com/spf13/pflag"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

func main() {
	config := options.NewKubeRouterConfig()
	config.AddFlags(pflag.CommandLine)
	pflag.Parse()
	access := must(clientcmd.BuildConfigFromFlags(config.Master, config.Kubeconfig))
	client := must(kubernetes.NewForConfig(access))

	forever := make(chan struct{})
	watched := informers.NewSharedInformerFactory(client, 0)
	pods := watched.Core().V1().Pods().Informer()
	namespaces := watched.Core().V1().Namespaces().Informer()
	policies := watched.Networking().V1().NetworkPolicies().Informer()
	watched.Start(forever)
	watched.WaitForCacheSync(forever)

	tables, sets, err := netpol.NewIPTablesHandlers(config)
	check(err)
	firewall := must(netpol.NewNetworkPolicyController(client, config, pods, policies, namespaces, &sync.Mutex{}, tables, sets))
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods: firewall.PodEventHandler, namespaces: firewall.NamespaceEventHandler, policies: firewall.NetworkPolicyEventHandler,
	} {
		_, err := informer.AddEventHandler(handler)
		check(err)
	}

	beats := make(chan *healthcheck.ControllerHeartbeat)
	go func() {
		for range beats { // they must be read
		}
	}()
	var running sync.WaitGroup
	running.Add(1)
	firewall.Run(beats, forever, &running)
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		klog.Fatal(err)
	}
}
