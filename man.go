package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/kernels"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// manCommand is for make, which installs what it writes.
var manCommand = &cli.Command{
	Name:      "man",
	Usage:     "write the man pages to a directory",
	ArgsUsage: "DIRECTORY",
	Hidden:    true,
	Before:    takes(1, 1),
	Action: func(c *cli.Context) error {
		dir := c.Args().First()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for name, text := range manPages(c.App, buildDate()) {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
				return err
			}
		}
		return nil
	},
}

// buildDate is today, or what SOURCE_DATE_EPOCH says for builds that can be repeated.
func buildDate() time.Time {
	if seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		return time.Unix(seconds, 0).UTC()
	}
	return time.Now()
}

// annotation is what a container's config.json can say about its VM.
type annotation struct{ Name, Value, Usage string }

var annotations = []annotation{
	{kernels.Annotation, "lean|net|full", "The guest's kernel. By default that is full, where it is installed, for a container with CAP_SYS_ADMIN, CAP_BPF or CAP_PERFMON; else net for one with CAP_NET_ADMIN; else lean."},
	{plan.AnnotationMemory, "MiB", "Memory of the VM, that of the guest's kernel included. By default it follows from the memory limit."},
	{plan.AnnotationVCPUs, "number", "Processors of the VM. By default as many as the CPU limit allows, or the host has."},
	{plan.AnnotationScratch, "PATH=SIZE", "A disk of its own, such as /var/lib/docker=20G: empty at each start, removed with the container."},
	{plan.AnnotationSeccomp, "keep", "Let the seccomp filter of config.json hold also for a container with every capability."},
	{plan.AnnotationHostSockets, "on|off", "Whether the container may connect to unix sockets of the host that it has as bind mounts. An option that says off wins."},
	{plan.AnnotationTemplate, "auto|off", "Whether the VM may start as a copy of a saved one."},
}

// manPage is what a page is made from.
type manPage struct {
	Name, Section, Title string
	Date, Version        string
	Usage, Synopsis      string
	Description          string
	Commands             []*cli.Command // none is hidden
	Flags                []cli.Flag
	Example              string
	Annotations          []annotation
	See                  []string
}

// manPages returns the pages of the program, of its commands and of its annotations,
// by their files' names.
func manPages(app *cli.App, date time.Time) map[string][]byte {
	var pages []manPage
	main := manPage{
		Name: app.Name, Usage: app.Usage, Synopsis: "[global options] command [command options]", Description: mainDescription,
		Flags: visibleFlags(app.Flags), Example: examples[""], See: []string{"boxlite-annotations(7)"},
	}
	for _, cmd := range app.Commands {
		if cmd.Hidden || cmd.Name == "help" {
			continue
		}
		main.Commands = append(main.Commands, cmd)
		main.See = append(main.See, "boxlite-"+cmd.Name+"(8)")
		pages = append(pages, commandPage(cmd, ""))
		for _, sub := range cmd.Subcommands {
			if sub.Name != "help" {
				pages = append(pages, commandPage(sub, cmd.Name))
			}
		}
	}
	pages = append(pages, main, manPage{
		Name: "boxlite-annotations", Section: "7", Usage: "what config.json can say about a container's virtual machine", Annotations: annotations,
		Description: annotationsDescription, Example: annotationsExample, See: []string{"boxlite(8)"},
	})
	files := map[string][]byte{}
	for _, p := range pages {
		if p.Section == "" {
			p.Section = "8"
		}
		p.Title, p.Date, p.Version = strings.ToUpper(p.Name), date.Format(time.DateOnly), version
		var b bytes.Buffer
		if err := manTemplate.Execute(&b, p); err != nil {
			panic(err) // of the template above all, which the tests execute
		}
		files[p.Name+"."+p.Section] = b.Bytes()
	}
	return files
}

func commandPage(cmd *cli.Command, parent string) manPage {
	name := strings.TrimSpace(parent + " " + cmd.Name)
	p := manPage{
		Name: "boxlite-" + strings.ReplaceAll(name, " ", "-"), Usage: cmd.Usage, Description: cmd.Description,
		Flags: visibleFlags(cmd.Flags), Example: examples[name], See: []string{"boxlite(8)"},
	}
	p.Synopsis = name + " [options]"
	for _, sub := range cmd.Subcommands {
		if sub.Name != "help" {
			p.Commands = append(p.Commands, sub)
			p.See = append(p.See, p.Name+"-"+sub.Name+"(8)")
		}
	}
	if p.Commands != nil {
		p.Synopsis = name + " command"
	}
	if cmd.ArgsUsage != "" {
		p.Synopsis += " " + cmd.ArgsUsage
	}
	return p
}

const mainDescription = `boxlite is an OCI runtime, a drop-in for runc, that gives every container a virtual
machine with its own Linux kernel. Container engines call it: boxlite install
registers it with Docker, Podman, containerd and CRI-O.

Global options stand before the command. An engine passes them where it knows them as
the runtime's arguments.`

const annotationsDescription = `A container's virtual machine follows from its config.json. These annotations change it
for one container; the global options of boxlite(8) change it for all, and win.`

const annotationsExample = `docker run --runtime boxlite --annotation boxlite.memory=2048 ...    # Docker 24 or later
podman run --runtime boxlite --annotation boxlite.scratch=/var/lib/docker=20G ...
`

var manTemplate = template.Must(template.New("man").Funcs(template.FuncMap{
	"roff": roff, "flag": helpOf, "page": func(s string) string { return strings.Replace(roff(s), "(", " (", 1) },
}).Parse(`.TH {{.Title}} {{.Section}} {{.Date}} "boxlite {{.Version}}"
.SH NAME
{{roff .Name}} \- {{roff .Usage}}
{{if .Synopsis}}.SH SYNOPSIS
.B boxlite
{{roff .Synopsis}}
{{end}}{{if .Description}}.SH DESCRIPTION
{{roff .Description}}
{{end}}{{if .Commands}}.SH COMMANDS
{{range .Commands}}.TP
.B {{roff .Name}}
{{roff .Usage}}
{{end}}{{end}}{{if .Annotations}}.SH ANNOTATIONS
{{range .Annotations}}.TP
\fB{{roff .Name}}\fP=\fI{{roff .Value}}\fP
{{roff .Usage}}
{{end}}{{end}}{{if .Flags}}.SH OPTIONS
{{range .Flags}}{{with flag .}}.TP
{{range $i, $name := .Names}}{{if $i}}, {{end}}\fB{{roff $name}}\fP{{end}}{{if .Value}} \fI{{roff .Value}}\fP{{end}}
{{roff .Usage}}
{{end}}{{end}}{{end}}{{if .Example}}.SH EXAMPLES
.nf
{{roff .Example}}.fi
{{end}}{{if .See}}.SH SEE ALSO
{{range $i, $page := .See}}{{if $i}},
{{end}}.BR {{page $page}}{{end}}
{{end}}`))

// roff escapes a text for man(7): dashes stay dashes, a line is never a request, and
// an empty line parts paragraphs.
func roff(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		switch {
		case line == "\n":
			line = ".PP\n"
		case strings.HasPrefix(line, "."), strings.HasPrefix(line, "'"):
			line = `\&` + roffEscapes.Replace(line)
		default:
			line = roffEscapes.Replace(line)
		}
		b.WriteString(line)
	}
	return b.String()
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "~", `\(ti`, "^", `\(ha`, "`", `\(ga`, "'", `\(aq`)
