package main

var runcTable = caseTable{
	begin: "<!-- runc's tests: written by `make conformance-runc` -->\n", end: "<!-- runc's tests: end -->\n",
	noun: "test", reasons: runcReasons,
}

// runcReasons says why a test of runc's fails with boxlite.
var runcReasons = map[string]string{
	"cgroups: runc exec (cgroup v1+hybrid joins correct cgroup)": "The test looks for the host's path in /proc/self/cgroup. In the guest the " +
		"container has a cgroup namespace of its own.",
	"debug: global --debug":                              debugReason,
	"debug: global --debug to --log":                     debugReason,
	"debug: global --debug to --log --log-format 'json'": debugReason,
	"debug: global --debug to --log --log-format 'text'": debugReason,
	"delete: runc delete --force in cgroupv1 with subcgroups": "The test adds a cgroup namespace to the one that `boxlite spec` writes. Then it " +
		"makes cgroups of version 1 inside. The guest has version 2.",
	"exec: runc --debug --log exec": debugReason,
	"exec: runc --debug exec":       debugReason,
	"exec: runc exec --cgroup sub-cgroups [v1]": "The test makes cgroups of version 1 inside. The guest has version 2. Before that it wants runc's " +
		"words for a cgroup that is not there.",
	"exec: runc exec --preserve-fds": "Descriptors do not reach into a VM. `exec` refuses them.",
	"help: runc -h":                  nameReason,
	"help: runc command -h":          "There is no `checkpoint`.",
	"hooks: runc run (hooks library tests)": "The hooks mount files into the rootfs, in the host's mount namespace of the process that stands for " +
		"the container's. The VM does not show these mounts.",
	"spec: spec validator": "The test clones a repository, and there is no network.",
	"update: update cgroup v1/v2 common limits": "The test wants the container's exact limits in the host's cgroup. There they are raised by what " +
		"the VM takes; the guest holds the exact ones.",
	"update: update devices [minimal transition rules]": "A rule of the test has the access `rwa`. The specification has r, w and m. boxlite refuses " +
		"others, and runc passes over them.",
	"update: update paused container":                        "The VM of a paused container stands still, and can change no limit. `update` says so.",
	"update: update rt period and runtime":                   "The kernel refuses a value of the test, with runc too.",
	"userns: userns with bind mount before a cgroupfs mount": "The test looks for hierarchies of version 1 inside. The guest has version 2.",
	"version: runc version":                                  nameReason,
}

const (
	debugReason = "The test looks in the log for steps of runc's own start, such as `nsexec started`."
	nameReason  = "The test wants the name of runc."
)
