package kubernetes

import (
	"testing"
)

// Containers of a pod meet in its volumes: files, and unix sockets, on disk as in memory.
func TestVolumes(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.noErr(sh("echo of the node >" + e.dir + "/file"))
		e.apply(`
apiVersion: v1
kind: ConfigMap
metadata: {name: config}
data: {one: "1", two: "2"}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {password: open sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: pod, labels: {color: blue}}
spec:
  runtimeClassName: $RUNTIME
  terminationGracePeriodSeconds: 1
  volumes:
  - {name: disk, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 16Mi}}
  - {name: config, configMap: {name: config}}
  - {name: secret, secret: {secretName: secret, defaultMode: 0400}}
  - {name: pod, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: host, hostPath: {path: $DIR}}
  containers:
  - name: server
    image: $IMAGE
    command: [sh, -c, "probe serve unix /disk/socket & exec probe serve unix /memory/socket"]
    volumeMounts: &all
    - {name: disk, mountPath: /disk}
    - {name: memory, mountPath: /memory}
    - {name: config, mountPath: /config}
    - {name: config, mountPath: /etc/one, subPath: one}
    - {name: disk, mountPath: /below, subPath: some/dir}
    - {name: secret, mountPath: /secret}
    - {name: pod, mountPath: /pod}
    - {name: host, mountPath: /host}
  - name: client
    image: $IMAGE
    command: [sleep, "10000"]
    volumeMounts: *all
  - name: reader
    image: $IMAGE
    command: [sleep, "10000"]
    volumeMounts:
    - {name: disk, mountPath: /disk, readOnly: true}
    - {name: memory, mountPath: /memory, readOnly: true}
    - {name: host, mountPath: /host, readOnly: true}
`)
		e.ready("pod")
		for _, dir := range []string{"disk", "memory"} {
			e.becomes("an answer by the socket in /"+dir, "hello", func() string { return e.in("pod", "client", "probe dial unix /"+dir+"/socket hello 2>&1; true") })
			e.in("pod", "client", "echo written >/"+dir+"/file; mkdir /"+dir+"/dir")
			e.want("a file in /"+dir, e.in("pod", "server", "cat /"+dir+"/file"), "written")
			e.want("the same, read-only", e.in("pod", "reader", "cat /"+dir+"/file; touch /"+dir+"/other 2>&1; rm /"+dir+"/file 2>&1; true"),
				"written\ntouch: /"+dir+"/other: Read-only file system\nrm: can't remove '/"+dir+"/file': Read-only file system")
			e.in("pod", "server", "mv /"+dir+"/file /"+dir+"/moved")
			e.want("what was moved in /"+dir, e.in("pod", "client", "cat /"+dir+"/moved; ls /"+dir+"/file 2>&1; true"), "written\nls: /"+dir+"/file: No such file or directory")
		}
		e.wantPart("a file of 32 MiB in 16 MiB of memory", e.in("pod", "client", "dd if=/dev/zero of=/memory/large bs=1M count=32 2>&1; rm /memory/large"), "No space left on device")

		e.want("a file by subPath", e.in("pod", "client", "cat /etc/one"), "1")
		e.in("pod", "client", "echo below >/below/file")
		e.want("a file in a directory by subPath", e.in("pod", "server", "cat /below/file /disk/some/dir/file"), "below\nbelow")
		e.want("the ConfigMap", e.in("pod", "client", "cd /config; ls; cat one two; touch new 2>&1; true"), "one\ntwo\n12touch: new: Read-only file system")
		e.want("the Secret", e.in("pod", "client", "cat /secret/password; stat -L -c ' %a' /secret/password"), "open sesame 400")
		e.want("the labels", e.in("pod", "client", "cat /pod/labels"), `color="blue"`)
		e.want("the account", e.in("pod", "client", "cd /var/run/secrets/kubernetes.io/serviceaccount; cat namespace; echo; head -n 1 ca.crt; cut -c -2 token; touch new 2>&1; true"),
			e.namespace+"\n-----BEGIN CERTIFICATE-----\ney\ntouch: new: Read-only file system")
		e.want("a file of the node", e.in("pod", "client", "cat /host/file; echo of the pod >/host/answer"), "of the node")
		e.want("a file of the pod", e.file("answer"), "of the pod")
		e.want("the node's directory, read-only", e.in("pod", "reader", "touch /host/other 2>&1; true"), "touch: /host/other: Read-only file system")
	})
}

// What changes in a ConfigMap shows in pods that run, all of it at once, and is told to those who watch it.
func TestConfigMapUpdate(t *testing.T) {
	eachRuntime(t, func(e *env) {
		set := func(value string) {
			e.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config}\ndata: {value: " + value + "}\n")
		}
		set("before")
		e.apply(`
$POD(pod)
  volumes: [{name: config, configMap: {name: config}}]
  containers:
  - {name: one, image: $IMAGE, command: [probe, watch, /config], volumeMounts: [{name: config, mountPath: /config}]}
  - {name: two, image: $IMAGE, command: [probe, watch, /config], volumeMounts: [{name: config, mountPath: /config}]}
`)
		e.ready("pod")
		for _, container := range []string{"one", "two"} {
			e.want("the value in "+container, e.in("pod", container, "cat /config/value"), "before")
		}
		set("after")
		for _, container := range []string{"one", "two"} {
			e.becomes("the value in "+container, "after", func() string { return e.in("pod", container, "cat /config/value") })
			// kubelet renames a link over another.
			e.wantPart("events in "+container, e.ok("logs", "pod", "--container", container), "to /config/..data #")
		}
	})
}
