package engineconfig

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
)

// dropInMark is the first line of a file that is boxlite's own.
const dropInMark = "# Written by boxlite install, removed by boxlite uninstall.\n"

// A dropInFormat is that of a file for one runtime, all of which is boxlite's.
type dropInFormat struct {
	text func(rt Runtime) string
	// path and standard find in text what Runtime calls so.
	path, standard *regexp.Regexp
}

func (f dropInFormat) find(text []byte, name string) (*Runtime, error) {
	if text == nil {
		return nil, nil
	}
	path := f.path.FindSubmatch(text)
	if !bytes.HasPrefix(text, []byte(dropInMark)) || path == nil {
		return nil, errors.New("it was not written by boxlite install: remove it by hand, or choose another --name")
	}
	unquoted, err := unquoteTOML(path[1])
	return &Runtime{Name: name, Path: unquoted, Default: f.standard.Match(text)}, err
}

func (f dropInFormat) add(_ []byte, rt Runtime) ([]byte, error) {
	return []byte(dropInMark + f.text(rt)), nil
}

func (dropInFormat) remove([]byte, []byte, string) ([]byte, error) { return nil, nil }

// podmanFormat is a file of containers.conf.d. Lists there take the place of
// Podman's, so that they name the runtimes which Podman lists by itself.
var podmanFormat = dropInFormat{
	text: func(rt Runtime) string {
		text := "[engine]\n"
		if rt.Default {
			text += fmt.Sprintf("runtime = %q\n", rt.Name)
		}
		return text + fmt.Sprintf(`runtime_supports_json = ["crun", "runc", "kata", "runsc", "youki", "krun", %[1]q]
runtime_supports_nocgroup = ["crun", "krun", %[1]q]

[engine.runtimes]
%[1]s = [%[2]s]
`, rt.Name, quoteTOML(rt.Path))
	},
	path:     regexp.MustCompile(`(?m)^\[engine\.runtimes\]\n.* = \[(".*")\]$`),
	standard: regexp.MustCompile(`(?m)^runtime = "`),
}

// crioFormat is a file of crio.conf.d.
var crioFormat = dropInFormat{
	text: func(rt Runtime) string {
		text := ""
		if rt.Default {
			text = fmt.Sprintf("[crio.runtime]\ndefault_runtime = %q\n\n", rt.Name)
		}
		return text + fmt.Sprintf(`[crio.runtime.runtimes.%s]
runtime_path = %s
runtime_type = "oci"
runtime_root = "/run/boxlite"
`, rt.Name, quoteTOML(rt.Path))
	},
	path:     regexp.MustCompile(`(?m)^runtime_path = (".*")$`),
	standard: regexp.MustCompile(`(?m)^default_runtime = "`),
}

// containerdDropInFormat is a file that config.toml imports. Only containerd 2
// merges such a file with the rest, and it writes version 3.
var containerdDropInFormat = dropInFormat{
	text: func(rt Runtime) string {
		text := "version = 3\n\n"
		if rt.Default {
			text += fmt.Sprintf("[%s]\n  default_runtime_name = %q\n\n", criTable(3), rt.Name)
		}
		return text + containerdEntry(3, rt, false)
	},
	path:     regexp.MustCompile(`(?m)^\s*BinaryName = (".*")$`),
	standard: regexp.MustCompile(`(?m)^\s*default_runtime_name = "`),
}
