package kubernetes

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// A container that needs more than its limit of memory is killed for that, alone.
func TestOutOfMemory(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.apply(`
$POD(pod)
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: greedy
    image: $IMAGE
    command: [sh, -c, "[ ! -e /data/killed ] || exec sleep 10000; touch /data/killed; exec probe hog 256"]
    resources: {limits: {memory: 64Mi}}
    volumeMounts: [{name: data, mountPath: /data}]
  - name: modest
    image: $IMAGE
    command: [sleep, "10000"]
    resources: {limits: {memory: 64Mi}}
`)
		e.becomes("restarts of the greedy one", "1", func() string { return e.status("pod", "greedy", ".restartCount") })
		e.want("why the greedy one ended", e.status("pod", "greedy", ".lastState.terminated.reason"), "OOMKilled")
		e.want("exit code of the greedy one", e.status("pod", "greedy", ".lastState.terminated.exitCode"), "137")
		e.ready("pod")
		e.want("restarts of the modest one", e.status("pod", "modest", ".restartCount"), "0")
		e.want("what the modest one may take", e.in("pod", "modest", "probe hog 48 | tail -n 1"), "touched 48")
	})
}

// Containers have what they ask for: their limits hold, they can be used to the full beside each other, and the pod's on the
// node are the sum, with what the RuntimeClass adds.
func TestRequestsAndLimits(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.apply(`
$POD(pod)
  containers:
  - name: large
    image: $IMAGE
    command: [sh, -c, "dd if=/dev/zero bs=200M count=1 | sleep 10000"] # holds so much
    resources: {requests: {memory: 64Mi, cpu: 100m}, limits: {memory: 256Mi, cpu: 500m}}
  - name: small
    image: $IMAGE
    command: [sleep, "10000"]
    resources: {requests: {memory: 32Mi, cpu: 100m}, limits: {memory: 64Mi, cpu: 500m}}
`)
		e.ready("pod")
		const limit = "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes"
		e.want("limit of the large one", e.in("pod", "large", limit), strconv.Itoa(256<<20))
		e.want("limit of the small one", e.in("pod", "small", limit), strconv.Itoa(64<<20))

		overhead := 0
		if e.rt.isVM() {
			overhead = overheadMiB
		}
		cgroup := "pod" + e.of("pod/pod", ".metadata.uid")
		e.want("limit of the pod on the node", e.onNode("cd $(find /sys/fs/cgroup -path '*/kubepods/*' -name "+cgroup+" | grep -e /memory/ -e /fs/cgroup/kubepods | head -n 1); cat memory.max 2>/dev/null || cat memory.limit_in_bytes"),
			strconv.Itoa((256+64+overhead)<<20))

		if e.rt.isVM() {
			e.wantRoomFor("large")
		}
		e.becomes("the large one has what it takes", "yes", func() string {
			return e.in("pod", "large", `awk '/VmRSS/ && $2 > 200000 { print "yes" }' /proc/$(pidof dd)/status`)
		})
		e.want("what the small one may take", e.in("pod", "small", "probe hog 48 | tail -n 1"), "touched 48")
		for _, container := range []string{"large", "small"} {
			e.want("restarts of "+container, e.status("pod", container, ".restartCount"), "0")
		}
		e.want("phase", e.of("pod/pod", ".status.phase"), "Running")
		e.eventuallyMeasured("pod", 200, "large", "small")
	})
}

// wantRoomFor wants the VM to fit into what the pod may use on the node. Otherwise the node would end it for what it caches.
func (e *env) wantRoomFor(container string) {
	e.Helper()
	kib, err := strconv.Atoi(e.in("pod", container, "awk '/MemTotal/ { print $2 }' /proc/meminfo"))
	e.noErr(err)
	if most := (256 + 64 + overheadMiB) << 10; kib > most {
		e.Errorf("the VM has %d KiB of memory, and the pod may use %d", kib, most)
	}
}

// eventuallyMeasured wants kubelet to know what a pod and each of its containers use, as kubectl top and autoscalers are told by
// a metrics server: from these figures. Those of the pod are at least so many MiB.
func (e *env) eventuallyMeasured(pod string, leastMiB float64, containers ...string) {
	e.Helper()
	want := map[string]float64{fmt.Sprintf("pod_memory_working_set_bytes{namespace=%q,pod=%q}", e.namespace, pod): leastMiB * (1 << 20)}
	want[fmt.Sprintf("pod_cpu_usage_seconds_total{namespace=%q,pod=%q}", e.namespace, pod)] = 0
	for _, container := range containers {
		of := fmt.Sprintf("{container=%q,namespace=%q,pod=%q}", container, e.namespace, pod)
		want["container_memory_working_set_bytes"+of], want["container_cpu_usage_seconds_total"+of] = 0, 0
	}
	e.becomes("kubelet has figures of the pod", "", func() (missing string) {
		figures := map[string]float64{}
		for line := range strings.Lines(e.ok("get", "--raw", "/api/v1/nodes/"+nodeName+"/proxy/metrics/resource")) {
			name, rest, _ := strings.Cut(line, " ")
			var value float64
			if n, _ := fmt.Sscan(rest, &value); n == 1 {
				figures[name] = value
			}
		}
		for name, least := range want {
			if figures[name] <= least {
				missing += fmt.Sprintln(name, figures[name])
			}
		}
		return missing
	})
}

// A member has all capabilities, in its pod's VM, where its annotation chooses the kernel for that. A neighbour has none of
// them. Without the annotation the pod's events say what to do.
func TestAllCapabilities(t *testing.T) {
	onlyVM(t, func(e *env) {
		const pod = `
apiVersion: v1
kind: Pod
metadata: {name: %NAME, annotations: {%ANNOTATION}}
spec:
  runtimeClassName: $RUNTIME
  terminationGracePeriodSeconds: 1
  containers:
  - name: powerful
    image: $IMAGE
    command: [sleep, "10000"]
    securityContext: {capabilities: {add: [ALL]}}
  - name: plain
    image: $IMAGE
    command: [sleep, "10000"]
    securityContext: {runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`
		e.apply(strings.NewReplacer("%NAME", "pod", "%ANNOTATION", "boxlite.kernel: net").Replace(pod))
		e.apply(strings.NewReplacer("%NAME", "mistaken", "%ANNOTATION", "").Replace(pod))
		e.ready("pod")
		// Of all capabilities containerd has left out those that it has not itself.
		e.want("capabilities of the powerful one", e.in("pod", "powerful", "sed -n 's/^CapEff:.//p' /proc/self/status"), e.onNode("sed -n 's/^CapBnd:.//p' /proc/self/status"))
		e.want("what they give", e.in("pod", "powerful", "mkdir /m; mount -t tmpfs tmpfs /m && mount -t proc proc /m && ip link add d0 type dummy && ls -d /sys/class/net/d0"), "/sys/class/net/d0")
		e.want("what the neighbour may do", e.in("pod", "plain", "grep CapEff /proc/self/status; mount -t tmpfs tmpfs /tmp 2>&1; ip link del d0 2>&1; ls /dev | grep -c -e kmsg -e mem -e vd; true"),
			"CapEff:\t0000000000000000\nmount: permission denied (are you root?)\nip: RTNETLINK answers: Operation not permitted\n0")
		e.wantPart("the error of the one without the annotation", e.failure("mistaken"), "boxlite.kernel=net")
	})
}

// dockerd runs in a member of a pod that has all capabilities, and containers in it have networks and ports. The neighbour has
// no capability, and reaches the ports as those of the pod.
func TestDockerInPod(t *testing.T) {
	onlyVM(t, func(e *env) {
		images := cluster.path("images")
		e.noErr(writeImage(images, dockerImage, dockerLayer, map[string]any{"Entrypoint": []string{"dind"}}))
		e.noErr(cluster.importImage(dockerImage))
		e.apply(strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: pod, annotations: {boxlite.kernel: net}}
spec:
  runtimeClassName: $RUNTIME
  terminationGracePeriodSeconds: 1
  volumes: [{name: docker, emptyDir: {}}]
  containers:
  - name: docker
    image: %DOCKER
    securityContext: {capabilities: {add: [ALL]}}
    volumeMounts: [{name: docker, mountPath: /var/lib/docker}]
  - name: plain
    image: $IMAGE
    command: [sleep, "10000"]
    securityContext: {runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`, "%DOCKER", dockerImage))
		e.ready("pod")
		// On a busy machine dockerd may give its containerd up, and kubelet starts it again.
		e.noErr(eventually(3*patience, "dockerd is up", func() error {
			log := e.ok("logs", "pod", "--container", "docker")
			if !strings.Contains(log, "API listen on") {
				return errors.New(log)
			}
			return nil
		}))
		e.want("containers of Docker", e.in("pod", "docker", `
mkdir -p /box/bin; for applet in busybox sh echo httpd wget ip cat; do ln /bin/busybox /box/bin/$applet 2>/dev/null || cp /bin/busybox /box/bin/$applet; done
tar -C /box -c . | docker import - box >/dev/null
docker run --rm box echo hello
docker run --rm --memory 32m --network none box cat /sys/fs/cgroup/memory.max
docker run --detach --publish 8080:80 box sh -c 'echo page >/index.html; exec httpd -f -p 80 -h /' >/dev/null
until busybox wget -qO- http://127.0.0.1:8080/ 2>/dev/null; do sleep 0.2; done`), "hello\n33554432\npage")
		e.want("the port, by the neighbour", e.in("pod", "plain", "wget -qO- http://127.0.0.1:8080/"), "page")
		e.want("what the neighbour may do", e.in("pod", "plain", "grep CapEff /proc/self/status; ls -d /var/lib/docker 2>&1; true"),
			"CapEff:\t0000000000000000\nls: /var/lib/docker: No such file or directory")
	})
}

// An ordinary user in a pod reads and writes what its fsGroup lets it, and nothing else.
func TestSecurityContext(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.apply(`
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {password: open sesame}
---
$POD(pod)
  securityContext:
    runAsUser: 1000
    runAsGroup: 3000
    fsGroup: 2000
    seccompProfile: {type: RuntimeDefault}
  volumes:
  - {name: data, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: secret, secret: {secretName: secret, defaultMode: 0440}}
  containers:
  - name: one
    image: $IMAGE
    command: [sleep, "10000"]
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts: &all [{name: data, mountPath: /data}, {name: memory, mountPath: /memory}, {name: secret, mountPath: /secret}]
  - name: two
    image: $IMAGE
    command: [sleep, "10000"]
    securityContext: {runAsUser: 1001}
    volumeMounts: *all
`)
		e.ready("pod")
		e.want("who one is", e.in("pod", "one", "id -u; id -g; id -G; grep -e NoNewPrivs -e Seccomp: /proc/self/status"), "1000\n3000\n3000 2000\nNoNewPrivs:\t1\nSeccomp:\t2")
		e.want("a Secret of the group", e.in("pod", "one", "cat /secret/password"), "open sesame")
		for _, dir := range []string{"/data", "/memory"} {
			e.want("a file of one in "+dir, e.in("pod", "one", "umask 7; echo from one >"+dir+"/file; stat -c '%u %g %a' "+dir+"/file"), "1000 2000 660")
			e.want("the same, by two", e.in("pod", "two", "cat "+dir+"/file; echo from two >>"+dir+"/file; cat "+dir+"/file"), "from one\nfrom one\nfrom two")
		}
		e.want("what one may not", e.in("pod", "one", "touch /file 2>&1; cat /proc/1/environ 2>&1 >/dev/null; chown 0 /data/file 2>&1; true"),
			"touch: /file: Read-only file system\nchown: /data/file: Operation not permitted")
	})
}

// failure waits until a container of the pod cannot be made, and returns why.
func (e *env) failure(pod string) (message string) {
	e.Helper()
	e.noErr(eventually(patience, "an error of "+pod, func() error {
		message = e.of("pod/"+pod, ".status.containerStatuses[*]..message")
		if message == "" {
			return errors.New("none yet")
		}
		return nil
	}))
	return message
}
