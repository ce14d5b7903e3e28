package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/boxlite-oci/boxlite/internal/isolate"
)

// runc's own tests are files of bats, the Bash Automated Testing System, which call the runtime that RUNC names. They come
// with runc's module. Each file runs isolated as a program of the OCI suite is.
const (
	runcModule toolModule = "conformance/runc/suite"
	// runcFileLimit is the longest that a file may take.
	runcFileLimit = 20 * time.Minute
)

// runcLeftOut are the files that need what is not built here: CRIU, an ssh server, and an agent that links libseccomp.
var runcLeftOut = []string{"checkpoint", "mounts_sshfs", "seccomp-notify", "seccomp-notify-compat"}

func conformRunc(o options) error {
	runtimes, err := runtimesOf(o)
	if err != nil {
		return err
	}
	dir, err := buildRuncTests()
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.bats"))
	if err != nil {
		return err
	}
	filter := regexp.MustCompile(o.run)
	files = slices.DeleteFunc(files, func(file string) bool {
		return slices.Contains(runcLeftOut, testsOf(file)) || !filter.MatchString(testsOf(file))
	})
	distribution, err := distributionImage()
	if err != nil {
		return err
	}
	tests := cases{}
	for _, rt := range runtimes {
		started := time.Now()
		for _, file := range files {
			if err := runBats(o, file, rt, distribution, tests); err != nil {
				return fmt.Errorf("%s with %s: %w", file, rt.name, err)
			}
		}
		tests.print(rt.name, runcTable.noun)
		fmt.Println("in", time.Since(started).Round(time.Second))
	}
	if o.run != "" || o.check {
		return nil
	}
	return tests.write(o.table, runcTable)
}

// testsOf names the tests of a file.
func testsOf(file string) string { return strings.TrimSuffix(filepath.Base(file), ".bats") }

// runBats adds what a file of bats says of a runtime to the results. Many tests want a terminal: script gives them one.
func runBats(o options, file string, rt ociRuntime, distribution string, results cases) error {
	if _, err := exec.LookPath("bats"); err != nil {
		return fmt.Errorf("%w (Debian: scripts/install-deps.sh suites)", err)
	}
	script, err := exec.LookPath("script")
	if err != nil {
		return err
	}
	out, errs, err := isolated(isolate.Job{
		Path: script, Args: []string{script, "--quiet", "--return", "--command", "bats --tap " + file, "/dev/null"},
		Dir: filepath.Dir(file), Env: []string{"RUNC=" + rt.path, distributionVariable + "=" + distribution}, Timeout: runcFileLimit,
	})
	if o.verbose {
		fmt.Printf("%s%s", out, errs)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) { // no more than a failing test, if the report is complete
		err = nil
	}
	if err := errors.Join(err, readBats(results, rt.name, testsOf(file), out)); err != nil {
		return fmt.Errorf("%w: %s", err, errs)
	}
	return nil
}

// readBats adds what a file of bats said of a runtime. A test that did not come to an end is an error.
func readBats(results cases, runtime, file string, output []byte) error {
	planned, made, last := unplanned, 0, ""
	for line := range bytes.Lines(output) {
		text := strings.TrimRight(string(line), "\r\n")
		if n, isPlan := readPlan(text); isPlan {
			planned = n
			continue
		}
		passed, directive, isTest := readTest(text)
		if !isTest {
			if comment, ok := strings.CutPrefix(text, "# "); ok && last != "" {
				r := results[last][runtime]
				r.message = strings.TrimPrefix(r.message+"\n"+comment, "\n")
				results[last][runtime] = r
			}
			continue
		}
		made++
		name, _, _ := strings.Cut(text, " # skip")
		name = strings.TrimPrefix(strings.TrimPrefix(name, "not "), "ok ")
		_, name, _ = strings.Cut(name, " ") // its number
		last = file + ": " + name
		switch {
		case directive == "skip":
			results.add(last, runtime, caseResult{state: "skipped"})
		case passed:
			results.add(last, runtime, caseResult{state: "passed"})
		default:
			results.add(last, runtime, caseResult{state: "failed"})
		}
	}
	if planned != made {
		return fmt.Errorf("planned %d tests, made %d", planned, made)
	}
	return nil
}

// buildRuncTests puts runc's tests, and the programs and the image with busybox that they use, into a directory of the cache,
// unless it has them. It returns where the tests are.
func buildRuncTests() (string, error) {
	const below = "tests/integration"
	dir, err := runcModule.built(func(dir string) error {
		list, err := runcModule.goTool("list", "-m", "-f", "{{.Dir}}", "github.com/opencontainers/runc")
		if err != nil {
			return err
		}
		source, tests := strings.TrimSpace(string(list)), filepath.Join(dir, below)
		if err := os.CopyFS(tests, os.DirFS(filepath.Join(source, below))); err != nil {
			return err
		}
		goMod, err := os.ReadFile(filepath.Join(source, "go.mod")) // a test reads versions there
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "go.mod"), goMod, 0o644)
		}
		if err != nil {
			return err
		}
		for _, program := range []string{"recvtty", "sd-helper"} {
			const commands = "github.com/opencontainers/runc/contrib/cmd/"
			if _, err := runcModule.goTool("build", "-trimpath", "-o", filepath.Join(dir, "contrib/cmd", program, program), commands+program); err != nil {
				return err
			}
		}
		if err := settle(tests); err != nil {
			return err
		}
		return writeBusyboxImage(tests)
	})
	return filepath.Join(dir, below), err
}

// settle changes how the tests start recvtty, which takes a container's terminal. The program may not hold bats's report open, which
// is descriptor 3, as a test that fails leaves it running. On a busy machine it is late, and the test has to wait for its socket.
func settle(tests string) error {
	for file, change := range map[string][2]string{
		"helpers.bash": {
			`("$RECVTTY" --pid-file "$dir/pid" --mode null "$CONSOLE_SOCKET" &) &`,
			`("$RECVTTY" --pid-file "$dir/pid" --mode null "$CONSOLE_SOCKET" 3>&- &) &` + "\n\tretry 100 0.1 test -S \"$CONSOLE_SOCKET\"",
		},
		"update.bats": {`("$RECVTTY" --no-stdin`, `("$RECVTTY" 3>&- --no-stdin`},
	} {
		path := filepath.Join(tests, file)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		changed := bytes.ReplaceAll(text, []byte(change[0]), []byte(change[1]))
		if bytes.Equal(changed, text) {
			return fmt.Errorf("%s has no %q", file, change[0])
		}
		if err := errors.Join(os.Remove(path), os.WriteFile(path, changed, 0o644)); err != nil { // the module's is read-only
			return err
		}
	}
	return nil
}

// distributionVariable is the variable of the environment with the path of the image with a distribution.
const distributionVariable = "BOXLITE_DISTRIBUTION"

// writeBusyboxImage makes the image with busybox that the tests would download, and the script that tells them where images are.
func writeBusyboxImage(dir string) error {
	parts, err := imageParts()
	if err != nil {
		return err
	}
	busybox, err := image{bare: true}.layer(parts) // tests put links in the place of what is left out
	if err != nil {
		return err
	}
	const script = "#!/bin/sh\necho BUSYBOX_IMAGE=$(dirname \"$0\")/busybox.tar\necho DEBIAN_IMAGE=$" + distributionVariable + "\n"
	path := filepath.Join(dir, "get-images.sh")
	if err := os.Remove(path); err != nil { // the module's is read-only
		return err
	}
	return errors.Join(os.WriteFile(path, []byte(script), 0o755), os.WriteFile(filepath.Join(dir, "busybox.tar"), busybox, 0o644))
}

// distributionImage returns the path of an image with ldconfig.
func distributionImage() (string, error) {
	built, err := exec.Command("images/build.sh", "dind").Output()
	if err != nil {
		return "", fmt.Errorf("images/build.sh: %w", err)
	}
	words := strings.Fields(string(built))
	return words[len(words)-1], nil
}
