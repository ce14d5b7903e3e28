package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// What docs/conformance.md promises of a file that somebody else changes: a reader who opens it sees the change after this time.
const freshWithin = time.Second

var (
	freshWays    = []string{"in-place", "truncate", "append", "mmap", "rename", "rename-kept", "kept"}
	freshReaders = []string{"read", "mmap", "exec"}
)

// A container that has read, mapped and run files sees what becomes of them: at once what it does itself, within a second what
// the host, another container or docker cp does, whichever way. What cannot show is a change from outside that leaves the file, its
// size and its time of modification what they were ("kept"); there the old text is allowed too, and nothing else.
func TestFreshness(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		host := func(args string) {
			e.Helper()
			e.noErr(sh("cd " + dir + " && export PATH=" + filepath.Join(workDir, "rootfs/bin") + ":$PATH && " + args))
		}
		// A file for each cell, WHO-HOW.READER, and the commands that make and change them, by who does it.
		var files []string
		changes := map[string][]string{}
		add := func(who, how string) {
			for _, reader := range freshReaders {
				name := fmt.Sprintf("%s-%s.%s", who, how, reader)
				files = append(files, name)
				changes[who] = append(changes[who], fmt.Sprintf("probe change %s %s +new", how, name))
			}
		}
		for _, who := range []string{"host", "self", "other"} {
			for _, how := range freshWays {
				add(who, how)
			}
		}
		for _, how := range []string{"cp", "cp-kept", "cp-root"} {
			add("docker", how)
		}
		var makes []string
		for _, name := range files {
			makes = append(makes, "probe change make "+name+" +old")
		}
		host(strings.Join(makes, " && "))

		id := e.start("-v", dir+":/v", "-w", "/v", "busybox", "sleep", "1000")
		other := e.start("-v", dir+":/v", "-w", "/v", "busybox", "sleep", "1000")
		e.exec(id, "sh", "-c", "mkdir /root/cp && cp -p docker-cp-root.* /root/cp")
		readIn := func(where string, names []string) map[string]string {
			e.Helper()
			return parseReport(e.exec(id, "sh", "-c", "cd "+where+" && probe look "+strings.Join(names, " ")))
		}
		by := func(who string) []string {
			return slices.DeleteFunc(slices.Clone(files), func(name string) bool { return !strings.HasPrefix(name, who+"-") })
		}
		check := func(got map[string]string, names []string) {
			e.Helper()
			for _, name := range names {
				want := "+new"
				if strings.Contains(name, "-append.") {
					want = "+old+new"
				}
				if kept := strings.HasPrefix(name, "host-kept.") || strings.HasPrefix(name, "other-kept."); kept && got[name] == "+old" {
					continue
				}
				if got[name] != want {
					e.Errorf("%s = %q, want %q", name, got[name], want)
				}
			}
		}
		// Known to the reader, twice over: the second reading is from its own memory.
		for range 2 {
			got := readIn("/v", files)
			for _, name := range files {
				e.want(name+" at first", got[name], "+old")
			}
		}
		roots := []string{"docker-cp-root.read", "docker-cp-root.mmap", "docker-cp-root.exec"}
		for name, text := range readIn("/root/cp", roots) {
			e.want(name+" at first", text, "+old")
		}

		own := e.exec(id, "sh", "-c", strings.Join(changes["self"], " && ")+" && probe look "+strings.Join(by("self"), " "))
		check(parseReport(own), by("self"))

		host(strings.Join(changes["host"], " && "))
		e.exec(other, "sh", "-c", strings.Join(changes["other"], " && "))
		for _, reader := range freshReaders {
			host("mkdir -p cp && probe change make cp/new +new")
			e.ok("cp", filepath.Join(dir, "cp/new"), id+":/v/docker-cp."+reader)
			e.ok("cp", filepath.Join(dir, "cp/new"), id+":/root/cp/docker-cp-root."+reader)
			host("touch -r docker-cp-kept." + reader + " cp/new")
			e.ok("cp", filepath.Join(dir, "cp/new"), id+":/v/docker-cp-kept."+reader)
		}
		// A tenth of a second more, as the guest's clock and the host's tick apart.
		time.Sleep(freshWithin + 100*time.Millisecond)
		check(readIn("/v", files), slices.DeleteFunc(slices.Clone(files), func(name string) bool { return slices.Contains(roots, name) }))
		check(readIn("/root/cp", roots), roots)
		// And the other way: a second container, which knew nothing of them, sees what the first has changed.
		got := parseReport(e.exec(other, "sh", "-c", "probe look "+strings.Join(by("self"), " ")))
		check(got, by("self"))
	})
}

// A container that touches a file hears of its new time of modification by that. The content that the host has written shows all
// the same.
func TestFreshAfterTouch(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		name := filepath.Join(dir, "file")
		e.noErr(os.WriteFile(name, []byte("old"), 0o644))
		id := e.start("-v", dir+":/v", "busybox", "sleep", "1000")
		// touch goes by the open file, so nothing looks for its name, and at its attributes, before.
		s := e.session("exec", "-i", id, "sh", "-c", `exec 3</v/file; cat /v/file; read line; touch /proc/self/fd/3; echo "touched $?"`)
		s.expect("old")
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		e.noErr(err)
		_, err = f.WriteString("new")
		e.noErr(err)
		e.noErr(f.Close())
		s.send("go\n")
		s.expect("touched 0")
		time.Sleep(freshWithin + 100*time.Millisecond)
		e.want("what the host wrote", e.exec(id, "cat", "/v/file"), "new")
	})
}
