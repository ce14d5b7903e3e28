package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// commandFlagsFirst orders the arguments behind the command that args name, see
// flagsFirst. What it does not understand it leaves to the parser.
func commandFlagsFirst(flags []cli.Flag, commands []*cli.Command, args []string) []string {
	at := 0
	for n := flagWords(flags, args); n > 0; n = flagWords(flags, args[at:]) {
		at += n
	}
	i := commandIndex(commands, args[at:])
	if i < 0 && at < len(args) && (args[at] == "help" || args[at] == "h") {
		return append(args[:at:at], helpTopic(commands, args[at:])...)
	}
	if i < 0 {
		return args
	}
	cmd, before, behind := commands[i], args[:at+1], args[at+1:]
	if cmd.Subcommands != nil {
		return slices.Concat(before, commandFlagsFirst(cmd.Flags, cmd.Subcommands, behind))
	}
	passesOn := cmd == execCommand || cmd == psCommand
	return slices.Concat(before, flagsFirst(slices.Concat(cmd.Flags, []cli.Flag{cli.HelpFlag}), passesOn, behind))
}

// helpTopic turns `help template create` into `template create --help`: cli's own
// help does not know of commands below commands. What is no command it leaves.
func helpTopic(commands []*cli.Command, args []string) []string {
	var topic []string
	for i := commandIndex(commands, args[1:]); i >= 0; i = commandIndex(commands, args[1+len(topic):]) {
		topic, commands = append(topic, commands[i].Name), commands[i].Subcommands
	}
	if topic == nil {
		return args
	}
	return append(topic, "--help")
}

// commandIndex is which of the commands args begin with, or -1.
func commandIndex(commands []*cli.Command, args []string) int {
	if len(args) == 0 {
		return -1
	}
	return slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[0]) })
}

// flagsFirst moves a command's flags before its arguments, as the parser wants
// them; runc's (urfave/cli v1, reorderArgs) takes `delete ID --force` too. Words
// that are no flags of the command (-, `kill ID -9`) and all behind "--" keep their
// order, and so does all behind the ID if the command passes that on. Help is
// asked for alone: the parser would take an ID for its topic.
func flagsFirst(flags []cli.Flag, passesOn bool, args []string) []string {
	var first, rest []string
	for len(args) > 0 && args[0] != "--" {
		n := flagWords(flags, args)
		switch {
		case n > 0 && slices.Contains(cli.HelpFlag.Names(), strings.TrimLeft(args[0], "-")):
			return args[:1]
		case n > 0:
			first, args = append(first, args[:n]...), args[n:]
		case passesOn:
			return append(first, args...)
		default:
			rest, args = append(rest, args[0]), args[1:]
		}
	}
	if len(args) > 0 {
		first, args = append(first, "--"), args[1:]
	}
	return slices.Concat(first, rest, args)
}

// flagWords is the number of words that the flag at the beginning of args and its
// value take: 0 if there is none.
func flagWords(flags []cli.Flag, args []string) int {
	if len(args) == 0 || !strings.HasPrefix(args[0], "-") {
		return 0
	}
	name, _, valued := strings.Cut(strings.TrimPrefix(args[0][1:], "-"), "=")
	i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	switch {
	case i < 0:
		return 0
	case valued || !flags[i].(cli.DocGenerationFlag).TakesValue():
		return 1
	default:
		return min(2, len(args))
	}
}

const anyNumber = math.MaxInt

// takes checks the number of a command's arguments, in runc's words.
func takes(least, most int) cli.BeforeFunc {
	return func(c *cli.Context) error {
		n, what := c.NArg(), ""
		switch {
		case least == most && n != least:
			what = fmt.Sprintf("exactly %d", least)
		case n < least:
			what = fmt.Sprintf("a minimum of %d", least)
		case n > most:
			what = fmt.Sprintf("a maximum of %d", most)
		default:
			return nil
		}
		return fmt.Errorf("boxlite: %q requires %s argument(s)", c.Command.Name, what)
	}
}
