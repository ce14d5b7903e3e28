package engineconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// containerdFormat is containerd's config.toml of version 2 or 3. What is added
// stands between two comments that name the runtime; a default that was set before
// is kept in a comment of its line.
type containerdFormat struct{}

// containerdConfig is what is looked at of config.toml.
type containerdConfig struct {
	Version  int64          `toml:"version"`
	Imports  []string       `toml:"imports"`
	Disabled []string       `toml:"disabled_plugins"`
	Plugins  map[string]any `toml:"plugins"`
}

// criPlugin is the plugin that starts pods, by the version of the file.
var criPlugin = map[int64]string{2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}

// newestPlain is the version of a file that boxlite makes: containerd 1 and 2 take it.
const newestPlain = 2

// criTable is the table of the plugin's that has the runtimes and the default.
func criTable(version int64) string { return fmt.Sprintf("plugins.%q.containerd", criPlugin[version]) }

// cri is the same table as a value, nil if there is none.
func (c *containerdConfig) cri() map[string]any {
	plugin, _ := c.Plugins[criPlugin[c.Version]].(map[string]any)
	table, _ := plugin["containerd"].(map[string]any)
	return table
}

func (c *containerdConfig) runtimes() map[string]any {
	runtimes, _ := c.cri()["runtimes"].(map[string]any)
	return runtimes
}

func parseContainerd(text []byte) (*containerdConfig, error) {
	c := new(containerdConfig)
	err := toml.Unmarshal(text, c)
	var broken *toml.DecodeError
	if errors.As(err, &broken) {
		line, column := broken.Position()
		return nil, fmt.Errorf("line %d, column %d: %w", line, column, err)
	}
	if err != nil {
		return nil, err
	}
	if c.Version == 0 && len(text) > 0 {
		return nil, errors.New("it names no version, which means 1; versions 2 and 3 are known (containerd config migrate writes a newer one)")
	}
	if len(text) == 0 {
		c.Version = newestPlain
	}
	if criPlugin[c.Version] == "" {
		return nil, fmt.Errorf("its version is %d; versions 2 and 3 are known", c.Version)
	}
	for _, name := range []string{"cri", criPlugin[c.Version]} {
		if slices.Contains(c.Disabled, name) {
			return nil, fmt.Errorf("disabled_plugins has %q, and no other plugin has runtimes", name)
		}
	}
	return c, nil
}

// containerdDropIn is the file for a runtime of that name beside config.toml, whose
// path and text are given: empty if the runtime is to be in config.toml itself.
// containerd 1 would let a drop-in take the place of everything that config.toml
// says of pods; where that is so already, config.toml is the wrong file.
func containerdDropIn(path string, text []byte, name string) (string, error) {
	config, err := parseContainerd(text)
	if err != nil {
		return "", err
	}
	for _, pattern := range config.Imports {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(path), pattern)
		}
		if config.Version > newestPlain {
			if filepath.Base(pattern) == "*.toml" {
				return filepath.Join(filepath.Dir(pattern), name+".toml"), nil
			}
			continue
		}
		files, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("imports: %q: %w", pattern, err)
		}
		for _, file := range files {
			imported, err := os.ReadFile(file)
			if err != nil {
				return "", err
			}
			if other, err := parseContainerd(imported); err == nil && other.Plugins[criPlugin[newestPlain]] != nil && file != path {
				return "", fmt.Errorf("it imports %s, which replaces all that it says of pods: name that file with --config", file)
			}
		}
	}
	return "", nil
}

func (containerdFormat) find(text []byte, name string) (*Runtime, error) {
	if text == nil {
		return nil, nil
	}
	config, err := parseContainerd(text)
	if err != nil {
		return nil, err
	}
	entry, ok := config.runtimes()[name].(map[string]any)
	if !ok {
		return nil, nil
	}
	if _, _, ok := findBlock(text, name); !ok {
		return nil, fmt.Errorf("it has a runtime %q that boxlite install has not written: remove it by hand, or choose another --name", name)
	}
	options, _ := entry["options"].(map[string]any)
	path, _ := options["BinaryName"].(string)
	return &Runtime{Name: name, Path: path, Default: config.cri()["default_runtime_name"] == name}, nil
}

func (f containerdFormat) add(text []byte, rt Runtime) ([]byte, error) {
	if start, end, ok := findBlock(text, rt.Name); ok {
		text = slices.Concat(text[:start], text[end:])
	}
	config, err := parseContainerd(text)
	if err != nil {
		return nil, err
	}
	var added strings.Builder
	if len(text) == 0 {
		fmt.Fprintf(&added, "version = %d\n", newestPlain)
	} else if text[len(text)-1] != '\n' {
		added.WriteByte('\n')
	}
	if len(config.runtimes()) == 0 {
		// A file with runtimes takes the place of containerd's own list.
		added.WriteString(block("runc", containerdTable(config.Version, "runc")))
	}
	entry := containerdEntry(config.Version, rt, usesSystemd(config))
	if rt.Default && config.cri()["default_runtime_name"] != rt.Name {
		place, err := defaultPlace(text, config.Version)
		if err != nil {
			return nil, err
		}
		if place == nil {
			entry = fmt.Sprintf("[%s]\n  default_runtime_name = %q\n\n", criTable(config.Version), rt.Name) + entry
		} else {
			text = place.set(text, rt.Name)
		}
	}
	return append(slices.Clone(text), added.String()+block(rt.Name, entry)...), nil
}

func (containerdFormat) remove(text, _ []byte, name string) ([]byte, error) {
	start, end, ok := findBlock(text, name)
	if !ok {
		return nil, errors.New("the comments that boxlite install puts around its lines are no longer there: remove the runtime by hand")
	}
	text = slices.Concat(text[:start], text[end:])
	text = unsetDefault(text, name)
	// runc's own entry is for the time that there are others.
	if start, end, ok := findBlock(text, "runc"); ok && len(anyBegin.FindAll(text, -1)) == 1 {
		text = slices.Concat(text[:start], text[end:])
	}
	return text, nil
}

// usesSystemd says that runc's entry has systemd make cgroups: then all have to.
func usesSystemd(config *containerdConfig) bool {
	runc, _ := config.runtimes()["runc"].(map[string]any)
	options, _ := runc["options"].(map[string]any)
	return options["SystemdCgroup"] == true
}

func containerdTable(version int64, name string) string {
	return fmt.Sprintf("[%s.runtimes.%s]\n  runtime_type = \"io.containerd.runc.v2\"\n", criTable(version), name)
}

// containerdEntry lets pods choose the guest's kernel. Other annotations of boxlite's would
// let them take what the orchestrator does not count.
func containerdEntry(version int64, rt Runtime, systemd bool) string {
	text := containerdTable(version, rt.Name) + "  pod_annotations = [\"boxlite.kernel\"]\n" + fmt.Sprintf("\n  [%s.runtimes.%s.options]\n    BinaryName = %s\n", criTable(version), rt.Name, quoteTOML(rt.Path))
	if systemd {
		text += "    SystemdCgroup = true\n"
	}
	return text
}

// The comments around what is added for a runtime.
func beginMark(name string) string { return "# boxlite install: " + name + " begins\n" }
func endMark(name string) string   { return "# boxlite install: " + name + " ends\n" }

var anyBegin = regexp.MustCompile(`(?m)^# boxlite install: (\S+) begins$`)

func block(name, text string) string { return "\n" + beginMark(name) + text + endMark(name) }

// findBlock returns where the block of a runtime begins and ends.
func findBlock(text []byte, name string) (start, end int, ok bool) {
	start = bytes.Index(text, []byte(beginMark(name)))
	end = bytes.Index(text, []byte(endMark(name)))
	if start < 0 || end < start {
		return 0, 0, false
	}
	if start > 0 && text[start-1] == '\n' && (start == 1 || text[start-2] == '\n') {
		start-- // the empty line before it
	}
	return start, end + len(endMark(name)), true
}

// A defaultSpot is where default_runtime_name is or can be set. Without a value it
// is the end of the table's header.
type defaultSpot struct {
	start, end int
	indent     string
	value      bool
}

const defaultWas = " # boxlite install: was "

func (p *defaultSpot) set(text []byte, name string) []byte {
	line := fmt.Sprintf("%q%s%s", name, defaultWas, text[p.start:p.end])
	if !p.value {
		line = fmt.Sprintf("\n%sdefault_runtime_name = %q%sunset", p.indent, name, defaultWas)
	}
	return slices.Concat(text[:p.start], []byte(line), text[p.end:])
}

// unsetDefault takes back what set did.
func unsetDefault(text []byte, name string) []byte {
	added := regexp.MustCompile(fmt.Sprintf(`(?m)\n[ \t]*default_runtime_name = %q%sunset$`, name, defaultWas))
	text = added.ReplaceAll(text, nil)
	changed := regexp.MustCompile(fmt.Sprintf(`%q%s("[^"\n]*"|'[^'\n]*')`, name, defaultWas))
	return changed.ReplaceAll(text, []byte("$1"))
}

// defaultPlace finds the key in the text or, if it is not there, the header of its
// table; nil if there is neither.
func defaultPlace(text []byte, version int64) (*defaultSpot, error) {
	table := []string{"plugins", criPlugin[version], "containerd"}
	var p unstable.Parser
	p.Reset(text)
	var header *defaultSpot
	var within []string
	for p.NextExpression() {
		e := p.Expression()
		path, end := keyOf(e)
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			if within = path; slices.Equal(path, table) {
				lineStart := bytes.LastIndexByte(text[:end], '\n') + 1
				line := text[lineStart:]
				indent := string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))]) + "  "
				if n := bytes.IndexByte(text[end:], '\n'); n >= 0 {
					end += n
				} else {
					end = len(text)
				}
				header = &defaultSpot{start: end, end: end, indent: indent}
			}
		case unstable.KeyValue:
			if slices.Equal(slices.Concat(within, path), append(table, "default_runtime_name")) && e.Value().Kind == unstable.String {
				raw := e.Value().Raw
				return &defaultSpot{start: int(raw.Offset), end: int(raw.Offset + raw.Length), value: true}, nil
			}
		}
	}
	return header, p.Error()
}

// keyOf returns the parts of an expression's key, and where the last one ends.
func keyOf(e *unstable.Node) (path []string, end int) {
	for it := e.Key(); it.Next(); {
		path = append(path, string(it.Node().Data))
		end = int(it.Node().Raw.Offset + it.Node().Raw.Length)
	}
	return path, end
}

// quoteTOML writes a basic string, whose escapes are among JSON's.
func quoteTOML(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string always marshals
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func unquoteTOML(text []byte) (s string, err error) {
	err = json.Unmarshal(text, &s)
	return s, err
}
