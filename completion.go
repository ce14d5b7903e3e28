package main

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/boxlite-oci/boxlite/libvm"
)

var completionCommand = &cli.Command{
	Name:      "completion",
	Usage:     "print a shell's rules for completing boxlite's command lines",
	ArgsUsage: "bash|zsh|fish",
	Before:    takes(1, 1),
	Action: func(c *cli.Context) error {
		script, ok := completionScripts[c.Args().First()]
		if !ok {
			return fmt.Errorf("boxlite completion: shell %q: bash, zsh or fish", c.Args().First())
		}
		_, err := fmt.Fprint(c.App.Writer, script)
		return err
	},
}

// completionScripts ask `boxlite complete` for words and, where that knows none,
// complete the names of files.
var completionScripts = map[string]string{
	"bash": `# bash completion for boxlite
_boxlite() {
	local cur=${COMP_WORDS[COMP_CWORD]} words
	words=$("${COMP_WORDS[0]}" complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f 1)
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -o default -F _boxlite boxlite
`,
	"zsh": `#compdef boxlite
_boxlite() {
	local -a found
	found=(${(f)"$($words[1] complete -- "${(@)words[2,CURRENT]}" 2>/dev/null | sed 's/:/\\:/g; s/\t/:/')"})
	if (( $#found )); then
		_describe boxlite found
	else
		_files
	fi
}
if [[ $funcstack[1] = _boxlite ]]; then
	_boxlite "$@"
else
	compdef _boxlite boxlite
fi
`,
	"fish": `# fish completion for boxlite
function __boxlite_complete
	set -l words (commandline -opc) (commandline -ct)
	set -l found ($words[1] complete -- $words[2..-1] 2>/dev/null)
	if test (count $found) -gt 0
		printf '%s\n' $found
	else
		__fish_complete_path (commandline -ct)
	end
end
complete -c boxlite -f -a '(__boxlite_complete)'
`,
}

// completeCommand is for the scripts.
var completeCommand = &cli.Command{
	Name:   "complete",
	Hidden: true,
	Action: func(c *cli.Context) error {
		for _, w := range completions(c.App, c.Args().Slice(), containerIDs) {
			if _, err := fmt.Fprintf(c.App.Writer, "%s\t%s\n", w.word, w.usage); err != nil {
				return err
			}
		}
		return nil
	},
}

// containerIDs lists the containers below a state root, empty for the usual one.
// Nobody is told why there are none.
func containerIDs(root string) (ids []string) {
	if root == "" {
		root = defaultRoot()
	}
	all, err := (&libvm.Runtime{Root: root, Log: slog.New(slog.DiscardHandler)}).List()
	if err != nil {
		return nil
	}
	for _, ctr := range all {
		ids = append(ids, ctr.ID)
	}
	return ids
}

// A completion is a word that may stand where the command line is, and what it means.
type completion struct{ word, usage string }

// completions are the words that may come last, of which the last of words is the
// beginning. There are none where a file or anything else may stand. ids lists the
// containers below a state root.
func completions(app *cli.App, words []string, ids func(root string) []string) (found []completion) {
	if len(words) == 0 {
		return nil
	}
	before, last := words[:len(words)-1], words[len(words)-1]
	flags, commands := visibleFlags(app.Flags), app.Commands
	var cmd *cli.Command
	root, args := "", 0
	for len(before) > 0 {
		switch n := flagWords(flags, before); {
		case before[0] == "--":
			return nil
		case n > len(before) || n == 1 && wantsValue(flags, before):
			return choices(flags, before[0])
		case n > 0:
			if cmd == nil && n == 2 && before[0] == "--root" {
				root = before[1]
			}
			before = before[n:]
			continue
		}
		if i := commandIndex(commands, before); i >= 0 {
			cmd = commands[i]
			flags, commands = visibleFlags(cmd.Flags), cmd.Subcommands
		} else {
			args++
		}
		before = before[1:]
	}
	switch {
	case strings.HasPrefix(last, "-"):
		for _, f := range flags {
			h := helpOf(f)
			found = append(found, completion{h.Names[0], h.Usage})
		}
	case len(commands) > 0:
		for _, c := range commands {
			if !c.Hidden {
				found = append(found, completion{c.Name, c.Usage})
			}
		}
	case cmd == nil || args > 0:
	case strings.HasPrefix(cmd.ArgsUsage, "ID"):
		for _, id := range ids(root) {
			found = append(found, completion{id, "container"})
		}
	case strings.Contains(cmd.ArgsUsage, "|") && !strings.Contains(cmd.ArgsUsage, " "):
		found = alternatives(cmd.ArgsUsage)
	}
	return found
}

// wantsValue says that the only word is a flag whose value is yet to come.
func wantsValue(flags []cli.Flag, words []string) bool {
	return len(words) == 1 && !strings.Contains(words[0], "=") && flagWords(flags, []string{words[0], ""}) == 2
}

// choices are the values of a flag that takes one of some words.
func choices(flags []cli.Flag, name string) []completion {
	for _, f := range flags {
		if h := helpOf(f); slices.Contains(h.Names, name) && strings.Contains(h.Value, "|") {
			return alternatives(h.Value)
		}
	}
	return nil
}

func alternatives(text string) (found []completion) {
	for word := range strings.SplitSeq(text, "|") {
		found = append(found, completion{word: word})
	}
	return found
}
