package engineconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tailscale/hujson"
)

// dockerFormat is daemon.json: runtimes are members of "runtimes", and
// "default-runtime" names one of them.
type dockerFormat struct{}

// dockerEntry is what daemon.json says of a runtime.
type dockerEntry struct {
	Path string   `json:"path"`
	Args []string `json:"runtimeArgs,omitempty"`
}

type dockerConfig struct {
	Runtimes map[string]dockerEntry `json:"runtimes"`
	Default  string                 `json:"default-runtime"`
}

func (dockerFormat) find(text []byte, name string) (*Runtime, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	root, err := parseJSON(text)
	if err != nil {
		return nil, err
	}
	if err := checkCase(text, root); err != nil {
		return nil, err
	}
	config, err := decodeDocker(text)
	if err != nil {
		return nil, err
	}
	e, ok := config.Runtimes[name]
	if !ok {
		return nil, nil
	}
	return &Runtime{Name: name, Path: e.Path, Args: e.Args, Default: config.Default == name}, nil
}

// checkCase refuses names that encoding/json takes for one of dockerConfig's, and
// dockerd does not know.
func checkCase(text []byte, root hujson.Value) error {
	for _, m := range root.Value.(*hujson.Object).Members {
		name := m.Name.Value.(hujson.Literal).String()
		for _, known := range []string{"runtimes", "default-runtime"} {
			if name != known && strings.EqualFold(name, known) {
				return at(text, m.Name.StartOffset, fmt.Errorf("dockerd does not know %q: it is %q there", name, known))
			}
		}
	}
	return nil
}

func decodeDocker(text []byte) (config dockerConfig, err error) {
	err = json.Unmarshal(text, &config)
	var mismatch *json.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		err = at(text, int(mismatch.Offset), fmt.Errorf("%s is of another type than dockerd takes: %s", mismatch.Field, mismatch.Value))
	}
	return config, err
}

func (dockerFormat) add(text []byte, rt Runtime) ([]byte, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{}\n")
	}
	entry := dockerEntry{rt.Path, rt.Args}
	text, err := editJSON(text, func(d *jsonText, root hujson.Value) {
		runtimes, ok := member(root, "runtimes")
		_, isObject := runtimes.Value.Value.(*hujson.Object)
		old, known := member(runtimes.Value, rt.Name)
		switch {
		case !ok:
			d.add(root, "runtimes", map[string]dockerEntry{rt.Name: entry})
		case !isObject: // null
			d.set(runtimes, map[string]dockerEntry{rt.Name: entry})
		case known:
			d.set(old, entry)
		default:
			d.add(runtimes.Value, rt.Name, entry)
		}
	})
	if err != nil || !rt.Default {
		return text, err
	}
	return setDockerDefault(text, rt.Name)
}

func setDockerDefault(text []byte, name string) ([]byte, error) {
	return editJSON(text, func(d *jsonText, root hujson.Value) {
		if old, ok := member(root, "default-runtime"); ok {
			d.set(old, name)
			return
		}
		d.add(root, "default-runtime", name)
	})
}

func (dockerFormat) remove(text, before []byte, name string) ([]byte, error) {
	config, err := decodeDocker(text)
	if err != nil {
		return nil, err
	}
	text, err = editJSON(text, func(d *jsonText, root hujson.Value) {
		from, what := root, "runtimes"
		if len(config.Runtimes) > 1 {
			runtimes, _ := member(root, "runtimes")
			from, what = runtimes.Value, name
		}
		d.remove(from, what)
	})
	if err != nil || config.Default != name {
		return text, err
	}
	if was, err := decodeDocker(before); err == nil && was.Default != "" && was.Default != name {
		return setDockerDefault(text, was.Default)
	}
	return editJSON(text, func(d *jsonText, root hujson.Value) { d.remove(root, "default-runtime") })
}

// jsonText is a JSON document that is edited as text. One edit is made in it: the
// offsets of its values do not hold afterwards.
type jsonText struct {
	text []byte
	root hujson.Value
}

// editJSON has one edit made in an object.
func editJSON(text []byte, edit func(d *jsonText, root hujson.Value)) ([]byte, error) {
	root, err := parseJSON(text)
	if err != nil {
		return nil, err
	}
	d := &jsonText{text: text, root: root}
	edit(d, root)
	return d.text, nil
}

// parseJSON takes an object without what only a superset of JSON has, and whose
// members have names of their own: of two, an engine may take either.
func parseJSON(text []byte) (hujson.Value, error) {
	var syntax *json.SyntaxError
	if err := json.Unmarshal(text, new(any)); errors.As(err, &syntax) {
		return hujson.Value{}, at(text, int(syntax.Offset)-1, err)
	} else if err != nil {
		return hujson.Value{}, err
	}
	root, err := hujson.Parse(text)
	if err != nil {
		return hujson.Value{}, err
	}
	if _, ok := root.Value.(*hujson.Object); !ok {
		return hujson.Value{}, at(text, root.StartOffset, errors.New("it is not an object"))
	}
	for v := range root.All() {
		obj, ok := v.Value.(*hujson.Object)
		if !ok {
			continue
		}
		seen := map[string]bool{}
		for _, m := range obj.Members {
			name := m.Name.Value.(hujson.Literal).String()
			if seen[name] {
				return hujson.Value{}, at(text, m.Name.StartOffset, fmt.Errorf("%q is there twice", name))
			}
			seen[name] = true
		}
	}
	return root, nil
}

func member(object hujson.Value, name string) (hujson.ObjectMember, bool) {
	i, members := memberIndex(object, name)
	if i < 0 {
		return hujson.ObjectMember{}, false
	}
	return members[i], true
}

func memberIndex(object hujson.Value, name string) (int, []hujson.ObjectMember) {
	obj, ok := object.Value.(*hujson.Object)
	if !ok {
		return -1, nil
	}
	return slices.IndexFunc(obj.Members, func(m hujson.ObjectMember) bool {
		return m.Name.Value.(hujson.Literal).String() == name
	}), obj.Members
}

// replace puts s in the place of the bytes from start to end.
func (d *jsonText) replace(start, end int, s string) {
	d.text = slices.Concat(d.text[:start], []byte(s), d.text[end:])
}

// set gives a member another value.
func (d *jsonText) set(m hujson.ObjectMember, value any) {
	d.replace(m.Value.StartOffset, m.Value.EndOffset, d.render(value, lead(m.Name)))
}

// add adds a member at the end of an object, laid out as its others are.
func (d *jsonText) add(object hujson.Value, name string, value any) {
	members := object.Value.(*hujson.Object).Members
	if len(members) > 0 {
		last := members[len(members)-1]
		between := lead(last.Name)
		d.replace(last.Value.EndOffset, last.Value.EndOffset,
			","+between+d.render(name, "")+":"+lead(last.Value)+d.render(value, between))
		return
	}
	// Nothing shows how: as the line that the object stands on.
	outer := lineLead(d.text[:object.StartOffset])
	inner := outer + d.unit()
	if d.oneLine() {
		outer, inner = "", ""
	}
	colon := ": "
	if inner == "" {
		colon = ":"
	}
	d.replace(object.StartOffset, object.EndOffset, "{"+inner+d.render(name, "")+colon+d.render(value, inner)+outer+"}")
}

// remove takes a member out of an object, with what add has put around it.
func (d *jsonText) remove(object hujson.Value, name string) {
	switch i, members := memberIndex(object, name); {
	case i < 0:
	case i > 0:
		d.replace(members[i-1].Value.EndOffset, members[i].Value.EndOffset, "")
	case len(members) > 1:
		d.replace(members[0].Name.StartOffset, members[1].Name.StartOffset, "")
	default:
		d.replace(object.StartOffset, object.EndOffset, "{}")
	}
}

// lead is the white space before a value: with a line break in it, the value
// begins a line.
func lead(v hujson.Value) string { return string(v.BeforeExtra) }

// lineLead is the line break and the indentation of the last line of text.
func lineLead(text []byte) string {
	line := string(text[bytes.LastIndexByte(text, '\n')+1:])
	return "\n" + line[:len(line)-len(strings.TrimLeft(line, " \t"))]
}

// oneLine says that the document has members, and no line break before them.
func (d *jsonText) oneLine() bool {
	members := d.root.Value.(*hujson.Object).Members
	return len(members) > 0 && !strings.Contains(lead(members[0].Name), "\n")
}

// unit is one level of indentation.
func (d *jsonText) unit() string {
	if members := d.root.Value.(*hujson.Object).Members; len(members) > 0 {
		if _, indent, ok := strings.Cut(lead(members[0].Name), "\n"); ok && indent != "" {
			return indent
		}
	}
	return "  "
}

// render writes a value that stands behind that white space: over several lines if
// it begins a line itself.
func (d *jsonText) render(value any, before string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	i := strings.LastIndexByte(before, '\n')
	if i >= 0 {
		enc.SetIndent(before[i+1:], d.unit())
	}
	if err := enc.Encode(value); err != nil {
		panic(err) // strings and lists of them always marshal
	}
	text := strings.TrimSuffix(b.String(), "\n")
	if strings.Contains(before, "\r\n") {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	return text
}
