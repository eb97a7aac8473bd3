"""A thousand nodes, simulated: what the chart's objects do on them, and a day of traffic in fast motion.

The control plane is real: etcd, the parts of Kubernetes, Prometheus and prometheus-adapter, as processes on
the loopback interface. kwok stands for the kubelets of all nodes: its pods start and end after a time, and
run nothing.
"""
