package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// flagHelp is what help, man pages and completions say of a flag.
type flagHelp struct {
	Names []string // with their dashes, the long one first
	Value string   // a word for its value, empty if it takes none
	Usage string   // with default and environment
}

// helpOf reads a flag. The word in backticks in its usage stands for its value; if
// the usage begins with it and a colon, that is not said twice.
func helpOf(f cli.Flag) flagHelp {
	doc := f.(cli.DocGenerationFlag)
	h := flagHelp{Usage: doc.GetUsage()}
	for _, name := range f.Names() {
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		h.Names = append(h.Names, dashes+name)
	}
	if before, rest, ok := strings.Cut(h.Usage, "`"); ok {
		word, after, _ := strings.Cut(rest, "`")
		h.Value = word
		h.Usage = before + word + after
		if before == "" && strings.HasPrefix(after, ": ") {
			h.Usage = after[2:]
		}
	}
	if h.Value == "" && doc.TakesValue() {
		h.Value = "value"
	}
	var more []string
	if text := doc.GetDefaultText(); doc.TakesValue() && text != "" && text != "0" && !strings.Contains(h.Usage, "(default") {
		more = append(more, "default: "+strings.Trim(text, `"`))
	}
	if s, ok := f.(cli.DocGenerationSliceFlag); ok && s.IsSliceFlag() {
		more = append(more, "may be repeated")
	}
	for _, env := range doc.GetEnvVars() {
		more = append(more, "$"+env)
	}
	if len(more) > 0 {
		h.Usage += " (" + strings.Join(more, "; ") + ")"
	}
	return h
}

// String is the flag's line in help, in two columns.
func (h flagHelp) String() string {
	head := strings.Join(h.Names, ", ")
	if h.Value != "" {
		head += " " + h.Value
	}
	return head + "\t" + h.Usage
}

// visibleFlags are those that help shows, --help among them.
func visibleFlags(flags []cli.Flag) []cli.Flag {
	visible := slices.DeleteFunc(slices.Clone(flags), func(f cli.Flag) bool {
		v, ok := f.(cli.VisibleFlag)
		return ok && !v.IsVisible()
	})
	if !slices.Contains(visible, cli.HelpFlag) {
		visible = append(visible, cli.HelpFlag)
	}
	return visible
}

// helpExample is the end of a command's help, a template.
func helpExample(name string) string {
	// As a string of the template's, in which nothing is an action.
	return fmt.Sprintf("\nEXAMPLE:\n{{%q}}", indent(examples[name], "   "))
}

// indent puts by before each line that is not empty.
func indent(text, by string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line != "\n" {
			b.WriteString(by)
		}
		b.WriteString(line)
	}
	return b.String()
}

// examples are command lines for each command, by its name behind "boxlite". What is
// behind # is a remark.
var examples = map[string]string{
	"": `boxlite check                                # can containers run here?
sudo boxlite install --docker                # then: docker run --runtime boxlite ...
sudo boxlite list
sudo boxlite --debug run --bundle web web    # and say what is decided
`,
	"create": `mkdir -p web/rootfs && boxlite spec --bundle web   # and fill web/rootfs
boxlite create --bundle web --pid-file web.pid web
boxlite start web
`,
	"start": "boxlite start web\n",
	"state": "boxlite state web | jq .status\n",
	"kill": `boxlite kill web            # TERM, to its process
boxlite kill --all web 9    # KILL, to every process
`,
	"delete": "boxlite delete --force web\n",
	"run": `boxlite run --bundle web web             # until it has ended
boxlite run --detach --bundle web web
boxlite --vm-memory 2048 --vcpus 2 run --bundle web web
`,
	"exec": `boxlite exec --tty web sh
boxlite exec --user 1000:1000 --env LANG=C web env
`,
	"list": `boxlite list
boxlite --root /run/docker/runtime-runc/moby list    # those of Docker
`,
	"ps":     "boxlite ps web\nboxlite ps web -o pid,comm\n",
	"pause":  "boxlite pause web\n",
	"resume": "boxlite resume web\n",
	"update": `boxlite update --memory 512m --pids-limit 200 web
echo '{"cpu": {"shares": 512}}' | boxlite update --resources - web
`,
	"events": `boxlite events --stats web | jq .data.memory
boxlite events --interval 1s web
`,
	"logs": `boxlite logs web
boxlite --root /run/docker/runtime-runc/moby logs ID    # of a container of Docker's
`,
	"template": "boxlite template create --kernel lean\nboxlite template list\n",
	"template create": `boxlite template create                      # one of each kernel
boxlite template create --kernel net --memory 2048
`,
	"template list":   "boxlite template list\n",
	"template delete": "boxlite template delete --all\n",
	"template path":   "du -sh $(boxlite template path)\n",
	"standby": `boxlite standby --vms 2
systemd-run --unit boxlite-standby boxlite standby --vms 2    # as a service
`,
	"spec":     "boxlite spec --bundle web\nboxlite spec --rootless\n",
	"features": "boxlite features | jq .linux.namespaces\n",
	"check": `boxlite check
boxlite --accel kvm check                                  # is KVM there?
boxlite check --json | jq '.checks[] | select(.advice)'    # what could be better
`,
	"install": `sudo boxlite install --docker --dry-run
sudo boxlite install --docker --name boxlite-debug -- --debug
sudo boxlite install --containerd --default
boxlite install --podman                     # for this user's Podman
`,
	"uninstall": "sudo boxlite uninstall --docker\n",
	"completion": `source <(boxlite completion bash)
boxlite completion fish >~/.config/fish/completions/boxlite.fish
`,
}
