package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A scratch disk: a file system of its own that begins empty and ends with the container.
func TestScratch(t *testing.T) {
	eachVM(t, func(e *env) {
		h := e.byHand()
		const script = `
echo "found=$(ls /scratch | xargs)"
echo "type=$(grep ' /scratch ' /proc/self/mounts | cut -d ' ' -f 3)"
echo "disk=$(df -k /scratch | awk 'NR==2 {print ($2 > 180000 && $2 <= 204800) ? "200M" : $2}')"
echo "full=$(dd if=/dev/zero of=/scratch/file bs=1M count=300 2>&1 | grep -o 'No space left on device')"
rm /scratch/file; echo "tmpfile=$(probe tmpfile /scratch)"`
		b := h.bundle("scratch", script+"; exec sleep 1000", func(s *specs.Spec) {
			s.Annotations = map[string]string{"boxlite.scratch": "/scratch=200M"}
		})
		// Twice, as a container that is started again.
		for range 2 {
			c := h.create(b)
			c.start()
			h.expect(c.out, "tmpfile=")
			if files := scratchFiles(); len(files) != 1 {
				h.Errorf("open while the container runs: %q, want one file", files)
			}
			h.must("kill", b.id, "KILL")
			c.end()
			h.must("delete", b.id)
			h.wantReport(parseReport(c.out.wait()), map[string]string{
				"found": "lost+found", "type": "ext4", "disk": "200M", "full": "No space left on device", "tmpfile": "tmpfile ok",
			})
			if files := scratchFiles(); len(files) > 0 {
				h.Errorf("open after the container: %q", files)
			}
		}

		// By flag, where a volume is: the volume stays. A share has no files without names.
		volume := e.diskDir()
		e.noErr(os.WriteFile(filepath.Join(volume, "kept"), nil, 0o644))
		b = h.bundle("scratch-volume", `ls /data; probe tmpfile /data`, addMount("/data", "bind", volume, "rbind"))
		h.flags = []string{"--scratch", "/data=1G"}
		r := h.cmd("run", "--bundle", b.dir, b.id)
		h.wantCode(r, 0)
		h.want("stdout", r.stdout, "kept\ntmpfile unsupported\n")
		h.wantPart("stderr", r.stderr, "no scratch disk at /data: something is mounted there")

		for value, want := range map[string]string{"/data": "want PATH=SIZE", "data=1G": "no absolute path", "/data=1K": `size .*1K`, "/data=1M": "not of 16"} {
			h.flags = []string{"--scratch", value}
			h.wantFail(want, "create", "--bundle", b.dir, b.id)
		}
		h.flags = nil
		b = h.bundle("scratch-bad", "true", func(s *specs.Spec) { s.Annotations = map[string]string{"boxlite.scratch": "/x"} })
		h.wantFail(`scratch disk .*/x`, "create", "--bundle", b.dir, b.id)
	})
}

// scratchFiles are the nameless files of /var/tmp that somebody has open. Where that is a mount, a process of another mount
// namespace has them at its root.
func scratchFiles() (found []string) {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, _ := os.Readlink(link) // some have ended
		if name, nameless := strings.CutSuffix(target, " (deleted)"); nameless && regexp.MustCompile(`^(/var/tmp)?/#\d+$`).MatchString(name) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return slices.Compact(found) // QEMU has it twice
}
