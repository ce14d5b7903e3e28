package kubernetes

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A node is the cluster: its control plane and its only node.
type node struct {
	work     string
	programs []*program // in the order of their start
}

const (
	nodeName         = "node"
	nodeIP           = "192.0.2.1"
	apiserverURL     = "https://" + nodeIP + ":6443"
	etcdURL          = "http://127.0.0.1:2379"
	serviceRange     = "10.96.0.0/16"
	podRange         = "10.88.0.0/16"
	containerdSocket = "/run/containerd/containerd.sock"
	runtimeRoot      = "/run/containerd/runc/k8s.io" // where containerd has the runtimes keep their state, by the OCI's --root
)

// A program runs until it is stopped, with its output in a file.
type program struct {
	name string
	path string
	args []string
	log  string
	cmd  *exec.Cmd
}

func (n *node) path(name string) string { return filepath.Join(n.work, name) }

// start brings the cluster up, and returns when its node takes pods.
func (n *node) start() error {
	if err := n.writeFiles(); err != nil {
		return err
	}
	// The node's own address is that of a bridge without ports. kubelet and CNI have fixed names below /var.
	err := sh(`ip link set lo up; sysctl -qw net.ipv4.ip_forward=1
ip link add node0 type bridge; ip addr add ` + nodeIP + `/24 dev node0; ip link set node0 up
mount -t tmpfs -o mode=755 tmpfs /var/log; mount -t tmpfs -o mode=755 tmpfs /var/lib`)
	if err != nil {
		return err
	}
	for _, start := range []func() error{n.startContainerd, n.startControlPlane, n.startNode} {
		if err := start(); err != nil {
			return err
		}
	}
	return n.apply(runtimeClasses())
}

func (n *node) startContainerd() error {
	if err := n.run("containerd", "containerd", "--config", n.path("containerd.toml")); err != nil {
		return err
	}
	if err := eventually(time.Minute, "containerd answers", func() error { return ctr("version") }); err != nil {
		return err
	}
	return errors.Join(n.importImage(pauseImage), n.importImage(image))
}

func (n *node) importImage(name string) error {
	return ctr("images", "import", n.path("images/"+archiveOf(name)))
}

// ctr is a command of containerd's own client.
func ctr(args ...string) error {
	return sh("ctr --address " + containerdSocket + " --namespace k8s.io " + strings.Join(args, " "))
}

func (n *node) startControlPlane() error {
	err := n.run("etcd", n.path("bin/etcd"), "--data-dir", n.path("etcd"), "--listen-client-urls", etcdURL, "--advertise-client-urls", etcdURL,
		"--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync")
	if err != nil {
		return err
	}
	err = n.run("kube-apiserver", n.path("bin/kube-apiserver"), "--etcd-servers", etcdURL, "--advertise-address", nodeIP,
		"--cert-dir", n.path("certificates"), "--token-auth-file", n.path("tokens.csv"), "--authorization-mode", "AlwaysAllow", "--allow-privileged",
		"--service-cluster-ip-range", serviceRange, "--kubelet-preferred-address-types", "InternalIP",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", n.path("service-accounts.pem"),
		"--service-account-signing-key-file", n.path("service-accounts.pem"))
	if err != nil {
		return err
	}
	if err := eventually(3*time.Minute, "kube-apiserver answers", func() error { return n.try("get", "--raw", "/readyz") }); err != nil {
		return err
	}
	err = n.run("kube-controller-manager", n.path("bin/kube-controller-manager"), "--kubeconfig", n.path("kubeconfig"), "--leader-elect=false",
		"--service-account-private-key-file", n.path("service-accounts.pem"), "--root-ca-file", n.path("certificates/apiserver.crt"))
	if err != nil {
		return err
	}
	return n.run("kube-scheduler", n.path("bin/kube-scheduler"), "--kubeconfig", n.path("kubeconfig"), "--leader-elect=false")
}

func (n *node) startNode() error {
	err := n.run("kubelet", n.path("bin/kubelet"), "--config", n.path("kubelet.yaml"), "--kubeconfig", n.path("kubeconfig"),
		"--hostname-override", nodeName, "--node-ip", nodeIP, "--root-dir", n.path("kubelet"), "--cert-dir", n.path("kubelet-pki"))
	if err != nil {
		return err
	}
	if err := n.await(); err != nil { // kube-proxy wants the node to be there
		return err
	}
	return n.run("kube-proxy", n.path("bin/kube-proxy"), "--kubeconfig", n.path("kubeconfig"), "--hostname-override", nodeName,
		"--proxy-mode", "iptables", "--iptables-localhost-nodeports=false", // that takes a sysctl of all interfaces
		"--conntrack-max-per-core", "0", "--conntrack-tcp-timeout-established", "0", "--conntrack-tcp-timeout-close-wait", "0")
}

// await waits until the node takes pods.
func (n *node) await() error {
	return eventually(2*time.Minute, "the node is ready", func() error {
		return n.try("wait", "--for=condition=Ready", "node/"+nodeName, "--timeout=30s")
	})
}

// run starts a program.
func (n *node) run(name, path string, args ...string) error {
	p := &program{name: name, path: path, args: args, log: n.path(name + ".log")}
	n.programs = append(n.programs, p)
	return p.start()
}

func (p *program) start() error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	return p.cmd.Start()
}

// end stops the program in the way of a service manager.
func (p *program) end() error {
	if p.cmd == nil || p.cmd.Process == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("%s had ended before: %w", p.name, err)
	}
	killed := time.AfterFunc(30*time.Second, func() { _ = p.cmd.Process.Kill() })
	_ = p.cmd.Wait() // by that signal
	if !killed.Stop() {
		return fmt.Errorf("%s: SIGTERM did not end it", p.name)
	}
	return nil
}

// restart stops a program and starts it again.
func (n *node) restart(t *testing.T, name string) {
	t.Helper()
	for _, p := range n.programs {
		if p.name != name {
			continue
		}
		if err := errors.Join(p.end(), p.start()); err != nil {
			t.Fatal(err)
		}
	}
}

// stop ends the programs. What is left of pods ends with the suite's process.
func (n *node) stop() (err error) {
	for i := len(n.programs) - 1; i >= 0; i-- {
		err = errors.Join(err, n.programs[i].end())
	}
	return err
}

// lastWords are the end of what the program has said.
func (p *program) lastWords() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s's log: %s", p.name, text[max(0, len(text)-4000):])
}

// writeFiles writes the configurations.
func (n *node) writeFiles() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"service-accounts.pem":   string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"tokens.csv":             "admin,admin,admin,system:masters\n",
		"kubeconfig":             n.kubeconfig(),
		"containerd.toml":        n.containerdConfig(),
		"cni/10-bridge.conflist": network,
		"kubelet.yaml":           n.kubeletConfig(),
		"resolv.conf":            "nameserver 192.0.2.53\n",
	} {
		err = errors.Join(err, os.MkdirAll(filepath.Dir(n.path(name)), 0o755), os.WriteFile(n.path(name), []byte(text), 0o600))
	}
	return err
}

func (n *node) kubeconfig() string {
	return `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "` + apiserverURL + `", certificate-authority: ` + n.path("certificates/apiserver.crt") + `}}]
users: [{name: admin, user: {token: admin}}]
contexts: [{name: c, context: {cluster: c, user: admin}}]
current-context: c
`
}

// network is CNI's. Pods have addresses of a bridge.
const network = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "` + podRange + `"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "/run/cni"}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

func (n *node) containerdConfig() string {
	var config strings.Builder
	fmt.Fprintf(&config, `version = 2
root = %q
state = "/run/containerd"
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = %q
`, n.path("containerd"), n.path("opt"), containerdSocket, pauseImage, n.path("cni"), runtimes[0].name)
	for _, rt := range runtimes {
		fmt.Fprintf(&config, `[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%[1]s]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = ["boxlite.kernel"]
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%[1]s.options]
    BinaryName = %[2]q
`, rt.name, rt.bin)
	}
	return config.String()
}

// kubeletConfig has a machine that does other things too: a disk or memory that is nearly full, or swap, are no reason to
// refuse pods.
func (n *node) kubeletConfig() string {
	return `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://` + containerdSocket + `
cgroupDriver: cgroupfs
address: ` + nodeIP + `
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failSwapOn: false
enforceNodeAllocatable: []
evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
imageGCHighThresholdPercent: 100
oomScoreAdj: 0
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: ` + n.path("resolv.conf") + `
volumePluginDir: ` + n.path("volume-plugins") + `
podLogsDir: ` + n.path("pods") + `
syncFrequency: 10s
`
}

// overhead is what a pod of boxlite takes beside its containers: QEMU, virtiofsd, and the guest's kernel.
const overheadMiB = 256

// runtimeClasses are those of the runtimes. What a VM takes beside its containers is in the one of boxlite.
func runtimeClasses() string {
	return fmt.Sprintf(`
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: runc}
handler: runc
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: boxlite}
handler: boxlite
overhead: {podFixed: {memory: %dMi, cpu: 100m}}
`, overheadMiB)
}

// kubectl is a command of the client.
func (n *node) kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, n.path("bin/kubectl"), append([]string{"--kubeconfig", n.path("kubeconfig"), "--cache-dir", n.path("kubectl-cache")}, args...)...)
}

func (n *node) try(args ...string) error {
	if out, err := n.kubectl(context.Background(), args...).CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// apply makes the objects that the text in YAML describes.
func (n *node) apply(text string, args ...string) error {
	cmd := n.kubectl(context.Background(), append([]string{"apply", "--filename", "-"}, args...)...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl apply: %w: %s", err, out)
	}
	return nil
}

// eventually asks until there is no error any more: the components tell their readiness to nobody.
func eventually(limit time.Duration, what string, f func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := f()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// sh runs a script that prepares something.
func sh(script string) error {
	_, err := shOutput(script)
	return err
}

func shOutput(script string) (string, error) {
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return string(out), err
}
