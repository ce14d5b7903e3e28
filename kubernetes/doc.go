// Package kubernetes runs pods on boxlite in a real cluster of one node: etcd, kube-apiserver, kube-controller-manager,
// kube-scheduler, kubelet and kube-proxy, with Debian's containerd and a network by CNI. Everything is in its tests.
//
//	go test                  isolates what follows (internal/isolate): nothing reaches the machine, all ends with it
//	  |
//	  +- the suite           makes the node's network, starts the cluster, runs the tests by kubectl
//	       |
//	       +- etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy
//	       +- containerd, kubelet
//	            +- shims, runtimes, pods
//
// Each scenario is a test, with the subtests "runc" and "boxlite": the same pod through another RuntimeClass. Where runc
// fails, the scenario is wrong. After each subtest no container, QEMU or mount of it may be left.
//
// The programs of Kubernetes are built from its modules (build.sh, programs/), which takes long once. So make kubernetes
// runs these tests, and make test does not.
package kubernetes
