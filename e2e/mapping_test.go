package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a container writes into a shared mapping, and never syncs, others see: at once while it is paused, and soon while it
// runs.
func TestSharedMappingReachesTheHost(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		e.noErr(unix.Chmod(dir, 0o777))
		name := tag + "-mapping"
		s := e.session(e.runArgs("-i", "--name", name, "-v", dir+":/v", "busybox", "probe", "mmapheld", "/v/file", "/root/file")...)
		s.expect("mapped\n")
		write := func(text string) {
			s.send(text + "\n")
			s.expect("wrote " + text + "\n")
		}
		onHost := func() (begin, middle string) {
			data, err := os.ReadFile(filepath.Join(dir, "file"))
			e.noErr(err)
			at := len(data) / 2
			return string(data[:4]), string(data[at : at+4])
		}

		write("run1")
		wrote := time.Now()
		for {
			begin, middle := onHost()
			if begin == "run1" && middle == "run1" {
				break
			}
			if time.Since(wrote) > 20*time.Second { // the kernel's own 30 s are too long
				e.Fatalf("after %v the volume has %q and %q", time.Since(wrote), begin, middle)
			}
			time.Sleep(20 * time.Millisecond)
		}
		e.Logf("the volume had it after %v", time.Since(wrote).Round(time.Millisecond))
		if err := waitFor("docker cp of what was written", func() bool {
			copied := filepath.Join(dir, "copied")
			e.ok("cp", name+":/root/file", copied)
			data, err := os.ReadFile(copied)
			return err == nil && string(data[:4]) == "run1"
		}); err != nil {
			e.Error(err)
		}

		for _, text := range []string{"psd1", "psd2"} {
			write(text)
			began := time.Now()
			e.ok("pause", name)
			e.Logf("pause took %v", time.Since(began).Round(time.Millisecond))
			begin, middle := onHost()
			e.want("volume of the paused container", begin+" "+middle, text+" "+text)
			e.ok("unpause", name)
		}

		write("comm") // commit pauses meanwhile
		image := e.ok("commit", name)
		e.Cleanup(func() { e.docker("rmi", "-f", image) })
		e.want("file in the image", e.runOK(image, "head", "-c", "4", "/root/file"), "comm")

		e.noErr(s.in.Close())
		e.want("exit code", itoa(s.end()), "0")
	})
}

// The space of a file that a container has removed, or replaced, is free for the container.
func TestSpaceOfRemovedFile(t *testing.T) {
	eachRuntime(t, func(e *env) {
		dir := e.diskDir()
		e.noErr(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=777"))
		e.Cleanup(func() { e.noErr(unix.Unmount(dir, unix.MNT_DETACH)) })
		const script = `
for i in 1 2 3 4 5 6 7 8 9 10; do
	dd if=/dev/zero of=/v/big bs=64k 2>/dev/null
	echo y 2>/dev/null >/v/small && echo "it is not full"
	rm -f /v/small
	rm /v/big
	echo y >/v/small || echo "round $i: no space after rm"
	rm /v/small
	dd if=/dev/zero of=/v/big bs=64k 2>/dev/null
	: >/v/empty
	mv /v/empty /v/big
	mkdir /v/dir && echo y >/v/dir/small || echo "round $i: no space after mv"
	rm -r /v/dir
done; exit 0`
		r := e.run("-v", dir+":/v", "busybox", "sh", "-c", script)
		e.wantCode(r, 0)
		e.want("complaints", r.stdout+r.stderr, "")
	})
}
