package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// watching is a program in a container that prints what inotify tells it.
type watching struct {
	*session
	e           *env
	dir, inside string // what it watches first, on the host and in the container
	seen        int    // bytes of output
}

// markers are directories that the host makes and removes, so that what was told before can be told from what comes later.
var markers int

// watch starts a program that watches files, the first of which is the host's dir. It returns when the host's changes are told. With
// runc that is at once. A VM's host comes to know of a watch shortly after it was made.
func (e *env) watch(id, dir string, inside ...string) *watching {
	e.Helper()
	w := &watching{session: e.session(append([]string{"exec", id, "probe", "watch"}, inside...)...), e: e, dir: dir, inside: inside[0]}
	w.expect("watching\n")
	e.noErr(waitFor("the first event", func() bool {
		mark := w.mark()
		for giveUp := time.Now().Add(time.Second); time.Now().Before(giveUp); time.Sleep(20 * time.Millisecond) {
			if strings.Contains(w.text(), mark) {
				return true
			}
		}
		return false
	}))
	w.told()
	return w
}

// mark changes something, and returns the last line that is told of it.
func (w *watching) mark() string {
	w.e.Helper()
	markers++
	name := fmt.Sprintf("marker-%d", markers)
	w.e.noErr(os.Mkdir(filepath.Join(w.dir, name), 0o700))
	w.e.noErr(os.Remove(filepath.Join(w.dir, name)))
	return "rmdir " + w.inside + "/" + name + "\n"
}

// told returns what was told since the last time.
func (w *watching) told() string {
	w.e.Helper()
	mark := w.mark()
	w.e.noErr(waitFor(mark, func() bool { return strings.Contains(w.text(), mark) }))
	text := w.text()
	lines := strings.SplitAfter(text[w.seen:], "\n")
	w.seen = len(text)
	var out strings.Builder
	for _, line := range lines {
		if !strings.Contains(line, "/marker-") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// What the host changes in a volume is told to the programs that watch it in the container, and what these change themselves is told
// once.
func TestFileEvents(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		in := func(name string) string { return filepath.Join(dir, name) }
		write := func(name, text string) {
			e.Helper()
			e.noErr(os.WriteFile(in(name), []byte(text), 0o644))
		}
		appendTo := func(name string) {
			e.Helper()
			f, err := os.OpenFile(in(name), os.O_WRONLY|os.O_APPEND, 0)
			e.noErr(err)
			_, err = f.WriteString("more")
			e.noErr(errors.Join(err, f.Close()))
		}
		e.noErr(os.MkdirAll(in("sub/deep"), 0o755))
		write("file", "old")
		write("conf", "old")
		id := e.start("-v", dir+":/v", "-v", dir+":/ro:ro", "-v", in("conf")+":/conf", "busybox", "sleep", "1000")
		rw := e.watch(id, dir, "/v", "/v/sub/deep", "/v/file", "/conf")
		ro := e.watch(id, dir, "/ro")
		rw.told()

		for _, c := range []struct {
			what   string
			change func()
			want   string
		}{
			{"a new file", func() { write("a", "x") }, "create /v/a\nmodify /v/a\nclose /v/a\n"},
			{"a mode", func() { e.noErr(os.Chmod(in("a"), 0o600)) }, "attrib /v/a\n"},
			{"a new name", func() { e.noErr(os.Rename(in("a"), in("b c\xff"))) }, "from /v/a #N\nto /v/b c\xff #N\n"},
			{"a removal", func() { e.noErr(os.Remove(in("b c\xff"))) }, "delete /v/b c\xff\n"},
			{"a file below", func() { write("sub/deep/f", "x") }, "create /v/sub/deep/f\nmodify /v/sub/deep/f\nclose /v/sub/deep/f\n"},
			{"a directory that nobody watches", func() { write("sub/f", "x") }, ""},
			{"a link that is replaced", func() {
				e.noErr(os.Symlink("sub", in("..tmp")))
				e.noErr(os.Rename(in("..tmp"), in("..data")))
			}, "create /v/..tmp\nfrom /v/..tmp #N\nto /v/..data #N\n"},
			{"a file that is bound", func() { appendTo("conf") }, "modify /conf\nmodify /v/conf\nclose /conf\nclose /v/conf\n"},
			{"a file that is watched and replaced", func() {
				write("new", "new")
				e.noErr(os.Rename(in("new"), in("file")))
			}, "attrib /v/file\nclose /v/new\ncreate /v/new\ndeleted /v/file\nfrom /v/new #N\nignored /v/file\nmodify /v/new\nto /v/file #N\n"},
			{"the container's own file", func() { e.ok("exec", id, "sh", "-c", "echo x >/v/own") }, "create /v/own\nmodify /v/own\nclose /v/own\n"},
			{"the container's own new name", func() { e.ok("exec", id, "mv", "/v/own", "/v/moved") }, "from /v/own #N\nto /v/moved #N\n"},
			{"the host's change of the container's file", func() {
				time.Sleep(2500 * time.Millisecond) // until it is not taken for an echo, docs/conformance.md
				appendTo("moved")
			}, "modify /v/moved\nclose /v/moved\n"},
		} {
			ro.told()
			if rw.told() != "" {
				t.Errorf("before %s: more than was expected", c.what)
			}
			c.change()
			e.want("told of "+c.what, sameEvents(rw.told()), sameEvents(c.want))
			if !strings.Contains(c.want, "conf") && !strings.Contains(c.want, "deep") && !strings.Contains(c.want, "ignored") { // of what it does not watch
				e.want("told of "+c.what+", read-only", sameEvents(ro.told()), sameEvents(strings.ReplaceAll(c.want, " /v/", " /ro/")))
			}
		}
		e.want("the file that was replaced", e.ok("exec", id, "cat", "/v/file"), "new")
	})
}

// sameEvents sorts events, which may come in another order, and names what belongs together (#1) in the order of its coming.
func sameEvents(events string) string {
	pairs := map[string]string{}
	events = pairMark.ReplaceAllStringFunc(events, func(mark string) string {
		if pairs[mark] == "" {
			pairs[mark] = fmt.Sprintf("#%d", len(pairs)+1)
		}
		return pairs[mark]
	})
	lines := strings.SplitAfter(events, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

var pairMark = regexp.MustCompile(`#\w+`)
