"""The control plane at scale: real controllers, real etcd, thousands of simulated agents."""
