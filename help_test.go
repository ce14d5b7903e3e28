package main

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/internal/golden"
)

func testApp() *cli.App { return newApp(&logOutput{}, new(traceOutput)) }

// allCommands returns the commands that help shows, by the name that examples have.
func allCommands(app *cli.App) map[string]*cli.Command {
	all := map[string]*cli.Command{}
	for _, cmd := range app.Commands {
		if !cmd.Hidden {
			all[cmd.Name] = cmd
			for _, sub := range cmd.Subcommands {
				all[cmd.Name+" "+sub.Name] = sub
			}
		}
	}
	return all
}

// Each command has examples, and they use flags that there are.
func TestExamples(t *testing.T) {
	app := testApp()
	commands := allCommands(app)
	for name := range commands {
		if examples[name] == "" {
			t.Errorf("no example for %q", name)
		}
	}
	for name, example := range examples {
		if name != "" && commands[name] == nil {
			t.Errorf("an example for %q, which is no command", name)
		}
		for line := range strings.Lines(example) {
			line, _, _ = strings.Cut(line, "#")
			_, line, _ = strings.Cut(" "+line, " boxlite ")
			words := strings.Fields(strings.FieldsFunc(line+" ", func(r rune) bool { return strings.ContainsRune("|>)", r) })[0])
			flags, within := app.Flags, app.Commands
			for len(words) > 0 && words[0] != "--" {
				if n := flagWords(flags, words); n > 0 {
					words = words[n:]
					continue
				}
				if i := commandIndex(within, words); i >= 0 {
					flags, within = within[i].Flags, within[i].Subcommands
				} else if strings.HasPrefix(words[0], "-") && len(words[0]) > 1 && name != "ps" {
					t.Errorf("example of %q: %q is no flag there", name, words[0])
				}
				words = words[1:]
			}
		}
	}
}

func TestHelpOf(t *testing.T) {
	for _, tc := range []struct {
		flag cli.Flag
		want string
	}{
		{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "end it"}, "--force, -f\tend it"},
		{&cli.StringFlag{Name: "log", Usage: "append to `file` (default: none)"}, "--log file\tappend to file (default: none)"},
		{&cli.StringFlag{Name: "format", Value: "table", Usage: "`table|json`: form"}, "--format table|json\tform (default: table)"},
		{&cli.IntFlag{Name: "n", Usage: "how many"}, "-n value\thow many"},
		{&cli.StringSliceFlag{Name: "env", Usage: "add `A=B`", EnvVars: []string{"E"}}, "--env A=B\tadd A=B (may be repeated; $E)"},
	} {
		if got := helpOf(tc.flag).String(); got != tc.want {
			t.Errorf("helpOf(%v) = %q, want %q", tc.flag.Names(), got, tc.want)
		}
	}
}

func TestManPages(t *testing.T) {
	app := testApp()
	pages := manPages(app, time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC))
	if got, want := len(pages), len(allCommands(app))+2; got != want {
		t.Errorf("%d pages, want %d", got, want)
	}
	dir := t.TempDir()
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"boxlite-kill.8", "boxlite-template.8", "boxlite-annotations.7"} {
		golden.Compare(t, name, pages[name])
	}
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		t.Fatal("no mandoc to look at the pages: scripts/install-deps.sh installs it")
	}
	files := slices.Collect(maps.Keys(pages))
	cmd := exec.Command(mandoc, append([]string{"-T", "lint", "-W", "warning"}, files...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
}

func TestRoff(t *testing.T) {
	for text, want := range map[string]string{
		"--all":            `\-\-all`,
		".hidden\n'x'":     "\\&.hidden\n\\&\\(aqx\\(aq",
		`C:\n`:             `C:\en`,
		"one\n\ntwo\n":     "one\n.PP\ntwo\n",
		"~/.config, `x` ^": `\(ti/.config, \(gax\(ga \(ha`,
	} {
		if got := roff(text); got != want {
			t.Errorf("roff(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestCompletions(t *testing.T) {
	ids := func(root string) []string { return []string{"web" + root, "db"} }
	for _, tc := range []struct {
		line string // its last word is being written
		want string // the beginning of what is offered
	}{
		{"", "create start state"},
		{"ki", "create start state"},
		{"-", "--root --log --log-format"},
		{"--log-format ", "text json"},
		{"--accel tcg ", "create start"},
		{"--root ", ""},
		{"--root=/x ", "create"},
		{"kill ", "web db"},
		{"--root /x kill ", "web/x db"},
		{"kill web ", ""},
		{"kill -", "--all --help"},
		{"run --bundle ", ""},
		{"run --bundle /b ", "web db"},
		{"run --bundle=/b ", "web db"},
		{"list --format ", "table json"},
		{"template ", "create list delete path"},
		{"template create --kernel ", "lean net full"},
		{"completion ", "bash zsh fish"},
		{"exec web -- ", ""},
		{"nosuch ", "create"},
	} {
		var words []string
		for _, c := range completions(testApp(), strings.Split(tc.line, " "), ids) {
			words = append(words, c.word)
		}
		got := strings.Join(words, " ")
		if !strings.HasPrefix(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("completions(%q) = %q, want %q", tc.line, got, tc.want)
		}
	}
}

// The scripts at work, in shells that this machine has.
func TestCompletionScripts(t *testing.T) {
	dir := t.TempDir()
	fake := "#!/bin/sh\nshift 2\nprintf 'kill\\tsend: a signal\\nstate\\tprint\\n'\nprintf '%s\\tx\\n' \"words$#\"\n"
	if err := os.WriteFile(filepath.Join(dir, "boxlite"), []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	for shell, tc := range map[string]struct{ ask, want string }{
		"bash": {`COMP_WORDS=(boxlite --debug ""); COMP_CWORD=2; _boxlite; echo "${COMPREPLY[@]}"`, "kill state words2\n"},
		"zsh":  {`compdef() :; words=(boxlite --debug ""); CURRENT=3; _describe() { print -rl ${(P)2} }; _boxlite`, "kill:send\\: a signal\nstate:print\nwords2:x\n"},
		"fish": {`complete -C "boxlite --debug "`, "kill\tsend: a signal\nstate\tprint\nwords2\tx\n"},
	} {
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("no %s", shell)
			continue
		}
		script := completionScripts[shell]
		if shell == "zsh" {
			script = "compdef() :\n" + script
		}
		cmd := exec.Command(path, "-c", script+tc.ask)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "HOME="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != tc.want {
			t.Errorf("%s completes %q, %v, want %q", shell, out, err, tc.want)
		}
	}
}
