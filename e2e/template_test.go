package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// withTemplates gives the case a store of its own, in dir, whatever mode the suite runs in.
func (h *hand) withTemplates(dir string) {
	h.flags = []string{"--template", "auto", "--template-dir", dir}
}

// templates are the names in the store.
func (h *hand) templates(dir string) []string {
	h.Helper()
	entries, err := os.ReadDir(dir)
	h.noErr(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// startedFrom creates a container, checks that it works, removes it, and returns the template it was a copy of, "" if it
// has booted, and what create wrote to stderr.
func (h *hand) startedFrom(b bundle, flags ...string) (template, stderr string) {
	h.Helper()
	c := h.create(b, flags...)
	template = h.state(b.id).Template
	c.start()
	h.want("end", c.end().String(), "exit code 0")
	h.want("stdout", c.out.wait(), "works\n")
	h.must("delete", b.id)
	return template, c.errs.wait()
}

func TestTemplateLife(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := filepath.Join(h.diskDir(), "store", "templates")
		h.withTemplates(dir)
		h.want("list without a store", strings.Fields(h.must("template", "list"))[0], "KEY")
		b := h.bundle("template", "echo works", nil)

		from, stderr := h.startedFrom(b)
		h.want("the first container's template", from, "")
		h.want("what it says", stderr, "")
		made := h.templates(dir)
		if len(made) != 1 {
			h.Fatalf("after the first container there are the templates %q, want one", made)
		}
		key := made[0]
		h.want("path", h.must("template", "path", key), filepath.Join(dir, key)+"\n")
		h.want("mode of the files", h.shOut("stat -c %a "+dir+" "+dir+"/*/*"), "700\n600\n600\n600\n")
		for range 2 {
			from, stderr = h.startedFrom(b)
			h.want("a later container's template", from, key)
			h.want("what it says", stderr, "")
		}

		// Made ahead it is the same; it can be deleted under a container.
		h.want("create of one that exists", h.must("template", "create", "--kernel", "lean"), key+"\n")
		c := h.create(b)
		h.want("template", h.state(b.id).Template, key)
		h.must("template", "delete", key)
		h.wantFail(key, "template", "delete", key)
		c.start()
		h.want("end", c.end().String(), "exit code 0")
		h.must("delete", b.id)
		h.want("create anew", h.must("template", "create", "--kernel", "lean"), key+"\n")
		from, _ = h.startedFrom(b)
		h.want("template", from, key)

		// Another shape is another template; a memory limit that is nearly the same is not.
		small := h.bundle("small", "echo works", func(s *specs.Spec) {
			limit := int64(100 << 20)
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
		})
		from, _ = h.startedFrom(small)
		h.want("template of a first small one", from, "")
		smaller := h.bundle("smaller", "echo works", func(s *specs.Spec) {
			limit := int64(90 << 20)
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
		})
		if from, _ = h.startedFrom(smaller); from == "" || from == key {
			h.Errorf("template of a second small one = %q, want the first one's", from)
		}
		list := h.must("template", "list")
		h.wantPart("list", list, from)
		h.wantPart("list", list, key)

		// Switched off, none is used and none made.
		h.flags[1] = "off"
		from, _ = h.startedFrom(b)
		h.want("template with --template off", from, "")
		h.flags[1] = "auto"
		h.must("template", "delete", "--all")
		h.want("left", fmt.Sprint(h.templates(dir)), "[]")
	})
}

// What is not exactly as it was written is not used: the container boots and says why, and there is a good template again.
func TestTemplateDamaged(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := filepath.Join(h.diskDir(), "templates")
		h.withTemplates(dir)
		key := strings.TrimSpace(h.must("template", "create", "--kernel", "lean"))
		b := h.bundle("damaged", "echo works", nil)
		for _, damage := range []string{
			"truncate -s -4096 memory",
			"printf x | dd of=memory bs=1 seek=10000000 conv=notrunc status=none",
			"printf x | dd of=state bs=1 seek=100000 conv=notrunc status=none",
			": >state",
			"rm memory",
			"echo '{' >manifest.json",
			"sed -i 's/\"o\":[0-9]*/\"o\":4611686018427387904/' manifest.json",
			"chmod 644 memory",
			"chown 1000 memory",
			"mv memory ../../elsewhere; ln -s ../../elsewhere memory",
			"rm *",
		} {
			h.shOut("cd " + dir + "/" + key + " && " + damage)
			from, stderr := h.startedFrom(b)
			h.want("template after "+damage, from, "")
			h.wantPart("what is said after "+damage, stderr, "cold start: template "+key)
			from, stderr = h.startedFrom(b)
			h.want("template afterwards", from, key)
			h.want("what is said afterwards", stderr, "")
		}

		// A store that others could look into or write is not even looked at.
		for _, harm := range []string{"chmod 755 " + dir, "chmod 700 " + dir + "; chown 1000 " + dir} {
			h.shOut(harm)
			from, stderr := h.startedFrom(b)
			h.want("template after "+harm, from, "")
			h.wantPart("what is said after "+harm, stderr, "template directory "+dir)
		}
		h.shOut("chown 0 " + dir)
		from, _ := h.startedFrom(b)
		h.want("template afterwards", from, key)
	})
}

// New parts are another VM, and what belongs to the old ones goes.
func TestTemplateAfterUpgrade(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		work := h.diskDir()
		dir, parts := filepath.Join(work, "templates"), filepath.Join(work, "parts")
		h.shOut(fmt.Sprintf("mkdir %s; cp %s/vmlinux-* %[2]s/initramfs.cpio %[1]s", parts, filepath.Dir(h.rt.bin)))
		h.withTemplates(dir)
		h.flags = append(h.flags, "--parts", parts)
		old := strings.TrimSpace(h.must("template", "create", "--kernel", "lean"))
		b := h.bundle("upgrade", "echo works", nil)
		from, _ := h.startedFrom(b)
		h.want("template", from, old)

		// The same size and date: still another file.
		h.shOut(fmt.Sprintf("cp -p %s/vmlinux-lean %[1]s/new; mv %[1]s/new %[1]s/vmlinux-lean", parts))
		h.wantPart("list", h.must("template", "list"), "outdated")
		from, stderr := h.startedFrom(b)
		h.want("template after an upgrade", from, "")
		h.want("what it says", stderr, "")
		now := h.templates(dir)
		if len(now) != 1 || now[0] == old {
			h.Errorf("templates after an upgrade = %q, want one that is not %s", now, old)
		}
	})
}

func TestTemplateOnAFullDisk(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := filepath.Join(h.diskDir(), "templates")
		h.shOut("mkdir " + dir + "; mount -n -t tmpfs -o size=8m,mode=700 none " + dir)
		h.Cleanup(func() { h.shOut("umount -n " + dir) })
		h.withTemplates(dir)
		b := h.bundle("disk", "echo works", nil)
		from, stderr := h.startedFrom(b)
		h.want("template", from, "")
		h.wantPart("what it says", stderr, "no space left on device")
		h.want("left in the store", fmt.Sprint(h.templates(dir)), "[]")
	})
}

// Of ten containers at once one makes the template, in place of a maker that was killed; then ten start from it.
func TestTemplateTenAtOnce(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		dir := filepath.Join(h.diskDir(), "templates")
		h.withTemplates(dir)
		key := strings.TrimSpace(h.must("template", "create", "--kernel", "lean"))
		h.shOut("mv " + dir + "/" + key + " " + dir + "/" + key + ".new; rm " + dir + "/*/manifest.json")
		bundles := make([]bundle, 10)
		for i := range bundles {
			bundles[i] = h.bundle(fmt.Sprint("ten-", i), "echo works", nil)
		}
		for _, round := range []string{"cold", "warm"} {
			answers := make(chan result)
			for _, b := range bundles {
				go func() { answers <- h.cmd("run", "--bundle", b.dir, b.id) }()
			}
			for range bundles {
				r := <-answers
				h.wantCode(r, 0)
				h.want(round+": stdout", r.stdout, "works\n")
				h.want(round+": stderr", r.stderr, "")
			}
			h.want(round+": store", fmt.Sprint(h.templates(dir)), "["+key+"]")
		}
	})
}

// Copies of one VM differ in all that must be an own one's: random numbers, boot id, host name; and they have the host's time.
func TestTemplateClonesAreNotTwins(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		h.withTemplates(filepath.Join(h.diskDir(), "templates"))
		key := strings.TrimSpace(h.must("template", "create", "--kernel", "lean"))
		script := `for f in boot_id uuid; do echo $f=$(cat /proc/sys/kernel/random/$f); done
echo random=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '); echo hostname=$(hostname); echo aslr=$(grep stack /proc/self/maps)
exec probe clock`
		const n = 20
		clones := make([]*session, n)
		bundles := make([]bundle, n)
		for i := range clones {
			bundles[i] = h.bundle(fmt.Sprint("clone-", i), script, func(s *specs.Spec) { s.Hostname = fmt.Sprint("clone-", i) })
		}
		for i, b := range bundles {
			clones[i] = startSession(h.T, h.cmdline("run", "--bundle", b.dir, b.id), func() {})
		}
		seen := map[string]int{}
		for i, c := range clones {
			report := parseReport(c.expect("clock\n"))
			h.want("template", h.state(bundles[i].id).Template, key)
			for _, name := range []string{"boot_id", "uuid", "random", "hostname", "aslr"} {
				value := report[name]
				if other, twin := seen[value]; value == "" || twin {
					h.Errorf("clone %d: %s = %q, as clone %d has it", i, name, value, other)
				}
				seen[value] = i
			}
		}
		for i, c := range clones {
			h.wantClock(i, c)
			h.noErr(syscall.Kill(c.cmd.Process.Pid, syscall.SIGTERM))
			c.end()
		}
	})
}

// wantClock asks for the time in the clone. What it answers lies between the question and the answer, give or take 50 ms.
func (h *hand) wantClock(i int, c *session) {
	h.Helper()
	const tolerance = 50 * time.Millisecond
	asked := time.Now()
	c.send("\n")
	line := c.expect("\n")
	answered := time.Now()
	nanos, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	h.noErr(err)
	at := time.Unix(0, nanos)
	if at.Before(asked.Add(-tolerance)) || at.After(answered.Add(tolerance)) {
		h.Errorf("clone %d: its clock is off by %v (asked and answered within %v)", i, at.Sub(asked), answered.Sub(asked))
	}
}
