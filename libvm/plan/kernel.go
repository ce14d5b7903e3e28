package plan

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// kernelParameters are those of the host's kernel that a container shall find in its
// own, by their path below /proc/sys; the other ones a guest has from its boot. The
// host's proc is mounted at proc.
func kernelParameters(proc string) map[string]string {
	parameters := map[string]string{}
	if readParameter(proc, "vm/overcommit_memory") == "2" {
		// Every reservation counts, against the host's memory and not the VM's.
		if limit := commitLimitKiB(proc); limit != "" {
			parameters["vm/overcommit_memory"], parameters["vm/overcommit_kbytes"] = "2", limit
		}
	}
	corePattern(proc, parameters)
	for name, has := range guestproto.KernelLimits {
		if limit, err := strconv.ParseUint(readParameter(proc, name), 10, 64); err == nil && limit > has {
			parameters[name] = strconv.FormatUint(limit, 10)
		}
	}
	return parameters
}

// corePattern has core files named as on the host. There a program or a socket of the
// host's may get them in place of a file, which no program of the container's can be.
func corePattern(proc string, parameters map[string]string) {
	switch pattern := readParameter(proc, "kernel/core_pattern"); {
	case strings.HasPrefix(pattern, "|"), strings.HasPrefix(pattern, "@"):
		parameters["kernel/core_pattern"] = "\n" // an empty one: no core files
	case pattern != "":
		if pattern != "core" { // which every guest has
			parameters["kernel/core_pattern"] = pattern
		}
		if pid := readParameter(proc, "kernel/core_uses_pid"); pid != "" && pid != "0" {
			parameters["kernel/core_uses_pid"] = pid
		}
	}
}

// readParameter returns a kernel parameter, or nothing for one that this kernel lacks.
func readParameter(proc, name string) string {
	text, err := os.ReadFile(filepath.Join(proc, "sys", name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// commitLimitKiB is how much all processes together may reserve with strict
// accounting, or nothing if that is not known.
func commitLimitKiB(proc string) string {
	text, err := os.ReadFile(filepath.Join(proc, "meminfo"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "CommitLimit:" && fields[2] == "kB" {
			return fields[1]
		}
	}
	return ""
}
