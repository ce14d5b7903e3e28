package main

var criTable = caseTable{
	begin: "<!-- critest: written by `make conformance-cri` -->\n", end: "<!-- critest: end -->\n",
	noun: "spec", reasons: criReasons,
}

// criReasons says why a spec of critest fails with boxlite.
var criReasons = map[string]string{
	"Container Mount Propagation runtime should support mount propagation mount with 'rshared' should support propagation from host to container and vice versa": "What is " +
		"mounted in a VM cannot show on the host. `create` refuses `rshared`.",
	"Idempotence StopContainer should not return an error if not found":  idempotenceReason,
	"Idempotence StopPodSandbox should not return an error if not found": idempotenceReason,
	"Security Context NamespaceOption runtime should support HostIpc is true": "The spec looks for a segment of the host's shared memory. " +
		"A VM has its own.",
	"Security Context NamespaceOption runtime should support HostNetwork is true": "The spec looks for a port of the host in the container's " +
		"/proc/net. The container has a network of its own, which reaches and is reached as the host.",
	"Security Context bucket runtime should support MaskedPaths": "Debian's busybox, of which the image is made, runs its own `ls`, whatever " +
		"is at /bin/ls. The path is masked.",
}

const idempotenceReason = "containerd 1.6 answers that there is none. No runtime is asked."
