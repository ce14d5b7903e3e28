package vmm

import (
	"os"
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/libvm/fault"
)

// FuzzSummarizeTasks holds an error made of a hostile guest's words to a line that
// a terminal shows as it is.
func FuzzSummarizeTasks(f *testing.F) {
	list, err := os.ReadFile("testdata/tasks.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(list))
	f.Add("task:init state:D stack:0 pid:1 ppid:0 flags:0x0\n ? do_wait+0x1/0x2\n")
	f.Add("task:\x1b[2J state:D stack:0 pid:" + strings.Repeat("1", 100) + " ppid:0\n")
	f.Add("task:init state:\u202e x pid:1 \n futex_wait_queue+0x0/0x0\ntask:task:init")
	f.Fuzz(func(t *testing.T, list string) {
		got := summarizeTasks(list)
		const most = mostTasks*(mostName+mostFrames*(mostName+3)+32) + 32
		if len(got) > most {
			t.Errorf("%d bytes, want at most %d: %.200q", len(got), most, got)
		}
		for _, r := range got {
			if r < ' ' || r > '~' {
				t.Errorf("%q has %q", got, r)
			}
		}
		if got != fault.Quiet(got) {
			t.Errorf("%q has a phrase that callers misread", got)
		}
		if got != "" && !strings.HasPrefix(got, " (guest kernel: ") {
			t.Errorf("summarizeTasks = %q", got)
		}
	})
}
