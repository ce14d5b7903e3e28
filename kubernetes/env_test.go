package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// patience is how long an emulated VM on a busy machine may take for what Kubernetes waits for.
const patience = 3 * time.Minute

// An env is a scenario with one runtime. Its objects are in a namespace of their own.
type env struct {
	*testing.T
	rt        ociRuntime
	namespace string
	dir       string // of the host, for volumes
}

// eachRuntime runs a scenario with every runtime, and wants nothing of it to be left.
func eachRuntime(t *testing.T, scenario func(e *env)) {
	for _, rt := range runtimes {
		t.Run(rt.name, func(t *testing.T) { withRuntime(t, rt, scenario) })
	}
}

// onlyVM runs a scenario that has no meaning where containers have the host's kernel.
func onlyVM(t *testing.T, scenario func(e *env)) {
	for _, rt := range runtimes {
		if rt.isVM() {
			withRuntime(t, rt, scenario)
		}
	}
}

func withRuntime(t *testing.T, rt ociRuntime, scenario func(e *env)) {
	name, _, _ := strings.Cut(strings.TrimPrefix(t.Name(), "Test"), "/")
	e := &env{T: t, rt: rt, namespace: strings.ToLower(name) + "-" + rt.name, dir: t.TempDir()}
	before := e.traces()
	e.noErr(cluster.try("create", "namespace", e.namespace))
	defer func() {
		if e.Failed() {
			e.describe()
		}
		e.noErr(cluster.try("delete", "namespace", e.namespace, "--wait=false"))
		e.noErr(cluster.try("delete", "deployments,replicasets,pods", "--all", "--namespace", e.namespace, "--grace-period=1", "--timeout", patience.String()))
		// kubelet forgets a pod before containerd has removed all of it.
		if err := eventually(time.Minute, "what the pods have left is gone", func() error { return sameTraces(before, e.traces()) }); err != nil {
			e.Error(err)
		}
	}()
	// Pods need the account, which a controller makes.
	e.noErr(eventually(time.Minute, "the namespace has an account", func() error {
		return cluster.try("get", "serviceaccount", "default", "--namespace", e.namespace)
	}))
	scenario(e)
}

func (e *env) noErr(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// traces are the containers' states, QEMUs, mounts and network namespaces of the node, by kind.
func (e *env) traces() map[string][]string {
	e.Helper()
	traces := map[string][]string{}
	for kind, script := range map[string]string{
		"states":     "ls " + runtimeRoot + " 2>/dev/null || true",
		"qemu":       "pidof qemu-system-x86_64 || true",
		"namespaces": "ls /run/netns 2>/dev/null || true",
		"mounts":     "cut -d ' ' -f 5 /proc/self/mountinfo | grep -e /pods/ -e /run/containerd -e /run/netns/ || true",
	} {
		out, err := exec.Command("sh", "-c", script).Output()
		e.noErr(err)
		traces[kind] = strings.Fields(string(out))
	}
	return traces
}

func sameTraces(before, after map[string][]string) error {
	var errs []error
	for kind := range before {
		known := map[string]bool{}
		for _, one := range before[kind] {
			known[one] = true
		}
		for _, one := range after[kind] {
			if !known[one] {
				errs = append(errs, fmt.Errorf("%s: %s is left", kind, one))
			}
		}
	}
	return errors.Join(errs...)
}

// describe logs what Kubernetes knows of the scenario, for a failure.
func (e *env) describe() {
	for _, args := range [][]string{{"get", "pods", "--output", "wide"}, {"describe", "pods"}} {
		out, _ := cluster.kubectl(context.Background(), append(args, "--namespace", e.namespace)...).CombinedOutput() // for the log only
		e.Logf("kubectl %s:\n%s", strings.Join(args, " "), out)
	}
	for _, p := range cluster.programs {
		if p.name == "containerd" || p.name == "kubelet" {
			e.Log(p.lastWords())
		}
	}
}

// podHead is how a pod's manifest begins, up to the fields of its spec.
var podHead = regexp.MustCompile(`\$POD\(([\w-]+)\)`)

// apply makes the objects of a text in YAML, in which $RUNTIME, $IMAGE and $DIR stand for the env's. $POD(NAME) begins a pod
// of the env's runtime, which has a second to end.
func (e *env) apply(text string) {
	e.Helper()
	text = podHead.ReplaceAllString(text, `apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  runtimeClassName: $$RUNTIME
  terminationGracePeriodSeconds: 1`)
	text = strings.NewReplacer("$RUNTIME", e.rt.name, "$IMAGE", image, "$DIR", e.dir).Replace(text)
	e.noErr(cluster.apply(text, "--namespace", e.namespace))
}

type result struct {
	stdout, stderr string
	code           int
}

// kubectl runs the client in the scenario's namespace, with stdin if that is not nil.
func (e *env) kubectl(stdin io.Reader, args ...string) result {
	e.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	cmd := cluster.kubectl(ctx, append([]string{"--namespace", e.namespace}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		e.Fatal(err)
	}
	if ctx.Err() != nil {
		e.Fatalf("kubectl %q did not end: %s%s", args, &stdout, &stderr)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok runs the client, which must succeed, and returns its stdout without the last newline.
func (e *env) ok(args ...string) string {
	e.Helper()
	r := e.kubectl(nil, args...)
	if r.code != 0 {
		e.Fatalf("kubectl %q: exit status %d: %s%s", args, r.code, r.stdout, r.stderr)
	}
	return strings.TrimSuffix(r.stdout, "\n")
}

// in runs a script in a container, which must succeed.
func (e *env) in(pod, container, script string) string {
	e.Helper()
	return e.ok("exec", pod, "--container", container, "--", "sh", "-c", script)
}

// wait waits for a condition, as kubectl has it.
func (e *env) wait(object, condition string) {
	e.Helper()
	e.ok("wait", object, "--for", condition, "--timeout", patience.String())
}

func (e *env) ready(pod string) {
	e.Helper()
	e.wait("pod/"+pod, "condition=Ready")
}

// of is a field of an object, by a path as kubectl's jsonpath has it.
func (e *env) of(object, path string) string {
	e.Helper()
	return e.ok("get", object, "--output", "jsonpath={"+path+"}")
}

// status is a field of a container's status in a pod.
func (e *env) status(pod, container, field string) string {
	e.Helper()
	return e.of("pod/"+pod, `.status.containerStatuses[?(@.name=="`+container+`")]`+field)
}

func (e *env) want(what, got, want string) {
	e.Helper()
	if got != want {
		e.Errorf("%s = %q, want %q", what, got, want)
	}
}

func (e *env) wantPart(what, got, want string) {
	e.Helper()
	if !strings.Contains(got, want) {
		e.Errorf("%s = %q, want %q in it", what, got, want)
	}
}

// becomes waits until f gives what is wanted.
func (e *env) becomes(what, want string, f func() string) {
	e.Helper()
	e.noErr(eventually(patience, what, func() error {
		if got := f(); got != want {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	}))
}

// file is what a container has written to a file in the env's directory.
func (e *env) file(name string) string {
	text, err := os.ReadFile(filepath.Join(e.dir, name))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text))
}
