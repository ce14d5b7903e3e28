package vmm

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/libvm/fdpass"
)

// testdata/tasks.txt is from a guest whose virtiofsd did not answer FUSE_INIT.
func TestSummarizeTasks(t *testing.T) {
	list, err := os.ReadFile("testdata/tasks.txt")
	if err != nil {
		t.Fatal(err)
	}
	const want = " (guest kernel: " +
		"init 53 (D) in fuse_get_req < destroy_sched_domains_rcu < fuse_simple_request < fuse_do_getattr < fuse_permission < inode_permission < link_path_walk.part.0.constprop.0 < path_init; " +
		"init 54 (S) in do_wait < kernel_wait4 < kill_orphaned_pgrp < do_syscall_64 < entry_SYSCALL_64_after_hwframe; " +
		"init 59 (S) in schedule_hrtimeout_range_clock < check_preempt_wakeup < do_epoll_wait < set_next_entity < ep_destroy_wakeup_source < do_compat_epoll_pwait.part.0 < __x64_sys_epoll_pwait < do_syscall_64; " +
		"init 57 (S) in ep_poll_callback < schedule_timeout < prepare_to_wait_exclusive < __skb_wait_for_more_packets < skb_attempt_defer_free < __unix_dgram_recvmsg < sock_read_iter < vfs_read)"
	if got := summarizeTasks(string(list)); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// The kernel's side of the conversation is from testdata/tasks.txt; what the guest
// wrote before it was asked, the mark of the end too, counts for nothing.
func TestStuckTasks(t *testing.T) {
	list, err := os.ReadFile("testdata/tasks.txt")
	if err != nil {
		t.Fatal(err)
	}
	host, guest, err := fdpass.Socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	log, logged := io.Pipe()
	c := readConsole(host, logged)
	go func() {
		<-c.copied
		_ = logged.Close()
	}()
	const before = endOfTasks + "\n"
	if _, err := guest.Write([]byte(before)); err != nil {
		t.Fatal(err)
	}
	// In the log, so the console has counted it before it is asked.
	if _, err := io.ReadFull(log, make([]byte, len(before))); err != nil {
		t.Fatal(err)
	}
	answered := make(chan []byte)
	go func() {
		rest, _ := io.ReadAll(log)
		answered <- rest
	}()
	go func() {
		question := make([]byte, len(askForTasks))
		if _, err := io.ReadFull(guest, question); err != nil || string(question) != askForTasks {
			t.Errorf("asked %q, %v", question, err)
		}
		_, _ = guest.Write(list)
		_ = guest.Close()
	}()
	if got, want := c.stuckTasks(), summarizeTasks(string(list)); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if rest := <-answered; !bytes.Equal(rest, list) {
		t.Errorf("the log has %d bytes of the answer, not the %d that the guest wrote", len(rest), len(list))
	}
}

// A guest must not reach the terminal of whoever reads the error.
func TestSummarizeTasksIsPlain(t *testing.T) {
	const good = "task:init state:D stack:0 pid:1 ppid:0\n ? do_wait+0x1/0x2\n"
	const want = " (guest kernel: init 1 (D) in do_wait)"
	for _, bad := range []string{
		"task:\x1b[2J state:D stack:0 pid:1 ppid:0\n",
		"task:init state:\u202e stack:0 pid:1 ppid:0\n",
		"task:init state:D stack:0 pid:" + strings.Repeat("1", 1<<16) + " ppid:0\n",
	} {
		if got := summarizeTasks(bad + good); got != want {
			t.Errorf("summarizeTasks(%.40q...) = %q, want %q", bad, got, want)
		}
	}
}

func TestSummarizeTasksIsBounded(t *testing.T) {
	frame := " ? " + strings.Repeat("x", 1024) + "+0x1/0x2\n"
	task := "task:" + strings.Repeat("n", 4096) + " state:D stack:0 pid:1 ppid:0 flags:0x0\n" + strings.Repeat(frame, 2*mostFrames)
	if got := summarizeTasks(strings.Repeat(task, 2*mostTasks)); len(got) > 4096 || !strings.Contains(got, "nnn") {
		t.Errorf("%d bytes: %.200q", len(got), got)
	}
}
