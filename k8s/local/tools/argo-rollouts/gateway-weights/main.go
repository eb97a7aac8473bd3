// gateway-weights is the traffic router plugin of Argo Rollouts in the local cluster: it writes the weights of a rollout
// into HTTPRoutes and GRPCRoutes of the Gateway API. It reads the same fields of a Rollout as the plugin that other
// clusters use, argoproj-labs/gatewayAPI, which cannot be built here: its module is not on every Go module proxy. Of that
// plugin's work it does only this one part. It sets no header routes and no mirrors, and refuses them.
package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/argoproj/argo-rollouts/pkg/apis/rollouts/v1alpha1"
	"github.com/argoproj/argo-rollouts/rollout/trafficrouting/plugin/rpc"
	"github.com/argoproj/argo-rollouts/utils/plugin/types"
	"github.com/hashicorp/go-plugin"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
)

const name = "argoproj-labs/gatewayAPI"

type route struct {
	Name string `json:"name"`
}

// fields are those of the Rollout, below spec.strategy.canary.trafficRouting.plugins.
type fields struct {
	Namespace  string  `json:"namespace"`
	HTTPRoutes []route `json:"httpRoutes"`
	GRPCRoutes []route `json:"grpcRoutes"`
}

type router struct{ client dynamic.Interface }

func (r *router) InitPlugin() types.RpcError {
	access, err := rest.InClusterConfig()
	if err == nil {
		r.client, err = dynamic.NewForConfig(access)
	}
	return answer(err)
}

// SetWeight is called for every reconciliation, and writes only what differs.
func (r *router) SetWeight(rollout *v1alpha1.Rollout, canary int32, others []v1alpha1.WeightDestination) types.RpcError {
	if len(others) > 0 {
		return answer(fmt.Errorf("%s: experiments with weights are not supported", name))
	}
	strategy := rollout.Spec.Strategy.Canary
	var given fields
	if err := json.Unmarshal(strategy.TrafficRouting.Plugins[name], &given); err != nil {
		return answer(err)
	}
	if given.Namespace == "" {
		given.Namespace = rollout.Namespace
	}
	weights := map[string]int64{strategy.StableService: int64(100 - canary), strategy.CanaryService: int64(canary)}
	for resource, routes := range map[string][]route{"httproutes": given.HTTPRoutes, "grpcroutes": given.GRPCRoutes} {
		for _, route := range routes {
			if err := r.write(resource, given.Namespace, route.Name, weights); err != nil {
				return answer(fmt.Errorf("%s %s: %w", resource, route.Name, err))
			}
		}
	}
	return types.RpcError{}
}

func (r *router) write(resource, namespace, name string, weights map[string]int64) error {
	client := r.client.Resource(schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: resource}).Namespace(namespace)
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		found, err := client.Get(context.TODO(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		changed, err := set(found, weights)
		if err != nil || !changed {
			return err
		}
		_, err = client.Update(context.TODO(), found, metav1.UpdateOptions{FieldManager: "gateway-weights"})
		return err
	})
}

// set writes the weights into every rule that names both services, and says whether that changed any.
func set(found *unstructured.Unstructured, weights map[string]int64) (changed bool, err error) {
	rules, _, err := unstructured.NestedSlice(found.Object, "spec", "rules")
	if err != nil {
		return false, err
	}
	complete := false
	for _, rule := range rules {
		backends, _ := rule.(map[string]any)["backendRefs"].([]any)
		named := map[string]map[string]any{}
		for _, backend := range backends {
			if backend, ok := backend.(map[string]any); ok {
				if service, ok := backend["name"].(string); ok {
					if _, ours := weights[service]; ours {
						named[service] = backend
					}
				}
			}
		}
		if len(named) < len(weights) {
			continue // a rule for one version only, such as by a header
		}
		complete = true
		for service, backend := range named {
			if backend["weight"] != weights[service] {
				backend["weight"], changed = weights[service], true
			}
		}
	}
	if !complete {
		return false, fmt.Errorf("no rule has both services as backends")
	}
	return changed, unstructured.SetNestedSlice(found.Object, rules, "spec", "rules")
}

func (r *router) VerifyWeight(*v1alpha1.Rollout, int32, []v1alpha1.WeightDestination) (types.RpcVerified, types.RpcError) {
	return types.NotImplemented, types.RpcError{}
}

func (r *router) UpdateHash(*v1alpha1.Rollout, string, string, []v1alpha1.WeightDestination) types.RpcError {
	return types.RpcError{}
}

func (r *router) RemoveManagedRoutes(*v1alpha1.Rollout) types.RpcError { return types.RpcError{} }

func (r *router) SetHeaderRoute(*v1alpha1.Rollout, *v1alpha1.SetHeaderRoute) types.RpcError {
	return answer(fmt.Errorf("%s: header routes are not supported", name))
}

func (r *router) SetMirrorRoute(*v1alpha1.Rollout, *v1alpha1.SetMirrorRoute) types.RpcError {
	return answer(fmt.Errorf("%s: mirrors are not supported", name))
}

func (r *router) Type() string { return "GatewayAPI" }

func answer(err error) types.RpcError {
	if err == nil {
		return types.RpcError{}
	}
	return types.RpcError{ErrorString: err.Error()}
}

func main() {
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "ARGO_ROLLOUTS_RPC_PLUGIN", MagicCookieValue: "trafficrouter"},
		Plugins:         map[string]plugin.Plugin{"RpcTrafficRouterPlugin": &rpc.RpcTrafficRouterPlugin{Impl: &router{}}},
	})
}
