package main

import (
	"strings"
	"testing"
)

func TestCommandFlagsFirst(t *testing.T) {
	app := newApp(&logOutput{}, &traceOutput{})
	for line, want := range map[string]string{
		"":                                "",
		"--root /r":                       "--root /r",
		"--version kill c1 -a":            "--version kill c1 -a",
		"nosuch c1 -f":                    "nosuch c1 -f",
		"delete c1":                       "delete c1",
		"delete c1 -f":                    "delete -f c1",
		"--root kill delete c1 -f":        "--root kill delete -f c1",
		"--debug --root=/r delete c1 -f":  "--debug --root=/r delete -f c1",
		"delete c1 --force=false":         "delete --force=false c1",
		"run c1 -d -b B":                  "run -d -b B c1",
		"run -d c1 --bundle B --keep":     "run -d --bundle B --keep c1",
		"create c1 --bundle=B":            "create --bundle=B c1",
		"create c1 -b -f":                 "create -b -f c1", // a value, as a flag's next word is
		"create c1 -b":                    "create -b c1",    // which then is its value
		"update c1 --pids-limit -1":       "update --pids-limit -1 c1",
		"update c1 -r - --memory 5":       "update -r - --memory 5 c1",
		"events c1 --stats --interval 1s": "events --stats --interval 1s c1",
		"kill c1 0 -a":                    "kill -a c1 0",
		"kill c1 --all 0":                 "kill --all c1 0",
		"kill c1 -9":                      "kill c1 -9",
		"kill -9 c1 -a":                   "kill -a -9 c1",
		"kill c1 -- -a":                   "kill -- c1 -a",
		"kill c1 -a -- -9":                "kill -a -- c1 -9",
		"state c1 --":                     "state -- c1",
		"state - --nosuch":                "state - --nosuch",
		"state c1 --help":                 "state --help",
		"update c1 --memory --help":       "update --memory --help c1",
		"delete c1 -f -h":                 "delete -h",
		"exec c1 ls -d --help":            "exec c1 ls -d --help",
		"exec -t --env A=b c1 -d":         "exec -t --env A=b c1 -d",
		"exec -d --help c1":               "exec --help",
		"ps c1 -f json":                   "ps c1 -f json",
		"ps -f json c1 -o pid":            "ps -f json c1 -o pid",
		"template delete KEY --all":       "template delete --all KEY",
		"template nosuch KEY --all":       "template nosuch KEY --all",
		"--log-format json list more -q":  "--log-format json list -q more",
		"help delete -f":                  "delete --help",
		"--debug h template list":         "--debug template list --help",
		"help nosuch":                     "help nosuch",
		"help":                            "help",
		"spec --bundle B --rootless":      "spec --bundle B --rootless",
		"--nosuch delete c1 -f":           "--nosuch delete c1 -f",
		"-- delete c1 -f":                 "-- delete c1 -f",
	} {
		got := strings.Join(commandFlagsFirst(app.Flags, app.Commands, strings.Fields(line)), " ")
		if got != want {
			t.Errorf("commandFlagsFirst(%q) = %q, want %q", line, got, want)
		}
	}
}
