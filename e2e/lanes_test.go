package e2e

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A lane is a machine of its own for tests: namespaces, a dockerd, a work directory, a tag. The tests of a run are handed
// out among its lanes one by one, so a lane is idle only when no test is left.
//
// A lane reads orders from stdin, a line each. Its output is what the tests print, and laneEnd behind each order.
type lane struct {
	work, tag string
	cmd       *exec.Cmd
	orders    io.WriteCloser
	output    *bufio.Reader
}

// laneEnd begins the line that a lane prints when the tests of an order have ended; m.Run's code follows.
const laneEnd = "\x16lane: ended with "

// alone are the tests that measure time finer than another lane's load lets them.
var alone = []string{
	// liveLimit
	"TestLoopbackFollowsNetworks", "TestNetworkChangesByHand", "TestNetworkConnect", "TestNetworkConnectAfterRestart", "TestNetworkConnectTwentyTimes",
	"TestNetworkConnectWhilePaused", "TestNetworkMoves", "TestNineInterfaces", "TestPodmanNetworkConnect", "TestPodmanNetworkReload",
}

// secondTries is how many tests of a run in several lanes are run once more, each alone, if runc alone has failed in them: what is
// tested is not runc. More than that is no chance, and fails the run.
const secondTries = 3

// laneCount reads E2E_LANES; without it there is a lane for each processor.
func laneCount() (int, error) {
	text := os.Getenv("E2E_LANES")
	if text == "" {
		return runtime.NumCPU(), nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("E2E_LANES: %q is not a number of lanes", text)
	}
	return n, nil
}

// orders are the patterns for -test.run that together run what this run's own pattern chooses, without whole tests that
// -test.skip names. A pattern that names subtests is one order.
func orders() (sideBySide, last []string, err error) {
	pattern := flag.Lookup("test.run").Value.String()
	if strings.Contains(pattern, "/") {
		return []string{pattern}, nil, nil
	}
	if pattern == "" {
		pattern = "."
	}
	list, err := exec.Command("/proc/self/exe", "-test.list", pattern).Output()
	if err != nil {
		return nil, nil, fmt.Errorf("list the tests: %w", err)
	}
	var skipped *regexp.Regexp
	if pattern := flag.Lookup("test.skip").Value.String(); pattern != "" && !strings.Contains(pattern, "/") {
		if skipped, err = regexp.Compile(pattern); err != nil {
			return nil, nil, fmt.Errorf("-skip: %w", err)
		}
	}
	for name := range strings.FieldsSeq(string(list)) {
		if skipped != nil && skipped.MatchString(name) {
			continue
		}
		if slices.Contains(alone, name) {
			last = append(last, "^"+name+"$")
		} else {
			sideBySide = append(sideBySide, "^"+name+"$")
		}
	}
	return sideBySide, last, nil
}

// startLane makes a lane's directory and its processes. The calling goroutine's thread must outlive the lane.
func startLane(n int) (*lane, error) {
	const prefix = "boxlite-e2e-"
	work, err := os.MkdirTemp("/var/tmp", prefix)
	if err != nil {
		return nil, err
	}
	// Not by the pid, which a run in another pid namespace may have as well.
	l := &lane{work: work, tag: fmt.Sprintf("bxe2e%s%c", strings.TrimPrefix(filepath.Base(work), prefix), 'a'+n)}
	if err := l.start(); err != nil {
		return nil, errors.Join(err, l.end())
	}
	return l, nil
}

func (l *lane) start() error {
	if err := buildRootfs(filepath.Join(l.work, "rootfs")); err != nil {
		return err
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool {
		return strings.HasPrefix(arg, "-test.testlogfile") // in a /tmp that the suite does not see
	})
	l.cmd = exec.Command("/proc/self/exe", args...)
	l.cmd.Env = append(os.Environ(), stageVar+"=init", workVar+"="+l.work, tagVar+"="+l.tag)
	l.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // Ctrl-C comes to this process alone, which then cleans up
	}
	var err error
	if l.orders, err = l.cmd.StdinPipe(); err != nil {
		return err
	}
	output, err := l.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	l.output = bufio.NewReader(output)
	l.cmd.Stderr = l.cmd.Stdout // in the order of what is said
	return l.cmd.Start()
}

// run has the lane run what the pattern chooses and writes its lines to w. The error is errTestsFailed,
// errRuncFailed or errLaneEnded.
func (l *lane) run(pattern string, timeLeft time.Duration, w io.Writer) error {
	if _, err := fmt.Fprintf(l.orders, "%s %s\n", timeLeft, pattern); err != nil {
		return fmt.Errorf("%w: %w", errLaneEnded, err)
	}
	runc, other := false, false // have subtests that failed
	for {
		line, err := l.output.ReadString('\n')
		if name, failed := strings.CutPrefix(strings.TrimSpace(line), "--- FAIL: "); failed && strings.Contains(name, "/") {
			name, _, _ = strings.Cut(name, " ")
			ofRunc := slices.Contains(strings.Split(name, "/"), "runc")
			runc, other = runc || ofRunc, other || !ofRunc
		}
		text, code, ended := strings.Cut(line, laneEnd)
		if verdict := strings.Trim(text, "\x16\n"); verdict != "PASS" && verdict != "FAIL" { // of the order, not of the run
			if _, err := io.WriteString(w, text); err != nil {
				return err
			}
		}
		switch {
		case ended && code == "0\n":
			return nil
		case ended && runc && !other:
			return fmt.Errorf("%w: %s", errRuncFailed, pattern)
		case ended:
			return fmt.Errorf("%w: %s", errTestsFailed, pattern)
		case err != nil:
			return fmt.Errorf("%w: %s", errLaneEnded, pattern)
		}
	}
}

var (
	errTestsFailed = errors.New("tests failed")
	errRuncFailed  = errors.New("tests failed with runc alone")
	errLaneEnded   = errors.New("the lane has ended")
)

// end ends the lane's processes, which have no test left, and removes what is on disk and its cgroups.
func (l *lane) end() error {
	var errs []error
	if l.cmd != nil && l.cmd.Process != nil {
		errs = append(errs, l.orders.Close())
		if err := l.cmd.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("lane %s: %w", l.tag, err))
		}
	}
	if os.Getenv("E2E_KEEP") == "" {
		errs = append(errs, os.RemoveAll(l.work))
	}
	for _, dir := range taggedCgroups(l.tag) {
		errs = append(errs, os.Remove(dir))
	}
	return errors.Join(errs...)
}

// kill ends the lane's processes at once; end is still to be called.
func (l *lane) kill() {
	_ = l.cmd.Process.Kill() // it may have ended meanwhile
}

// lanes hand out orders, and print what comes of each in one piece.
type lanes struct {
	all     []*lane
	giveUp  time.Time // zero: never
	mu      sync.Mutex
	failed  []string // patterns whose tests failed with runc alone
	errs    []error  // what else went wrong
	stopped bool
}

func startLanes(n int) (*lanes, error) {
	s := &lanes{}
	if limit := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration); limit > 0 {
		s.giveUp = time.Now().Add(limit)
	}
	for i := range n {
		l, err := startLane(i)
		if err != nil {
			return nil, errors.Join(err, s.end())
		}
		s.all = append(s.all, l)
	}
	return s, nil
}

// run hands the orders out among the first n lanes, and returns when all have been followed.
func (s *lanes) run(n int, patterns []string) {
	queue := make(chan string, len(patterns))
	for _, p := range patterns {
		queue <- p
	}
	close(queue)
	var wg sync.WaitGroup
	for _, l := range s.all[:n] {
		wg.Go(func() { s.follow(l, queue, n > 1) })
	}
	wg.Wait()
	for p := range queue { // no lane was left for it
		s.note(p, fmt.Errorf("%s was not run", p))
	}
}

// runFailedAgain runs each pattern that failed with runc alone once more, alone, if they are few. It names those that pass then:
// each is a defect of the test, of the engine or of runc that only some runs show.
func (s *lanes) runFailedAgain() {
	failed := s.failed
	if len(failed) == 0 || len(failed) > secondTries || len(s.errs) > 0 || s.isStopped() {
		return
	}
	fmt.Printf("=== failed with runc, now once more and alone: %s\n", strings.Join(failed, " "))
	s.failed = nil
	s.run(1, failed)
	for _, p := range failed {
		if !slices.Contains(s.failed, p) {
			fmt.Printf("=== failed once and passed alone: %s\n", p)
		}
	}
}

// follow runs orders in a lane until none is left or the lane has ended.
func (s *lanes) follow(l *lane, queue <-chan string, inPieces bool) {
	for pattern := range queue {
		if s.isStopped() {
			return
		}
		left := time.Duration(0)
		if !s.giveUp.IsZero() {
			left = max(time.Until(s.giveUp), time.Second)
		}
		var piece strings.Builder
		w := io.Writer(os.Stdout)
		if inPieces {
			w = &piece
		}
		err := l.run(pattern, left, w)
		s.mu.Lock()
		_, _ = io.WriteString(os.Stdout, piece.String())
		s.mu.Unlock()
		s.note(pattern, err)
		if errors.Is(err, errLaneEnded) {
			return
		}
	}
}

// note keeps what came of a pattern's tests.
func (s *lanes) note(pattern string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case errors.Is(err, errRuncFailed):
		s.failed = append(s.failed, pattern)
	case err != nil:
		s.errs = append(s.errs, err)
	}
}

func (s *lanes) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// stop ends all tests at once.
func (s *lanes) stop(why error) {
	s.mu.Lock()
	s.stopped = true
	s.errs = append(s.errs, why)
	s.mu.Unlock()
	for _, l := range s.all {
		l.kill()
	}
}

// end ends the lanes and returns all that failed.
func (s *lanes) end() error {
	errs := s.errs
	for _, p := range s.failed {
		errs = append(errs, fmt.Errorf("%s failed", p))
	}
	for _, l := range s.all {
		errs = append(errs, l.end())
	}
	return errors.Join(errs...)
}

// runLane is what the suite stage does: it follows the orders on stdin until there are no more.
func runLane(m *testing.M) int {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		timeLeft, pattern, _ := strings.Cut(in.Text(), " ")
		for name, value := range map[string]string{"test.timeout": timeLeft, "test.run": pattern} {
			if err := flag.Set(name, value); err != nil {
				return complain(err)
			}
		}
		fmt.Printf("%s%d\n", laneEnd, m.Run())
	}
	if err := in.Err(); err != nil {
		return complain(err)
	}
	return 0
}
