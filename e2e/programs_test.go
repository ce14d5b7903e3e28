package e2e

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// programImage is that of ../images/programs, with its workloads and a directory of the host for their files.
func (e *env) programImage() []string {
	e.Helper()
	workloads, err := filepath.Abs("../images/programs/workloads")
	e.noErr(err)
	return []string{"-v", workloads + ":/workloads:ro", "-v", e.diskDir() + ":/work", e.wholeImage("programs", "")}
}

// programs runs workloads of ../images/programs in one container, with flags of docker run. It returns what they report.
func (e *env) programs(flags []string, names ...string) map[string]string {
	e.Helper()
	e.patient()
	r := e.run(slices.Concat(flags, e.programImage(), []string{"/workloads/run", "1"}, names)...)
	e.wantCode(r, 0)
	if e.Failed() {
		e.Fatalf("the programs say:\n%s", r.stderr)
	}
	return parseReport(r.stdout)
}

// Each database is killed and recovers.
func TestRealDatabases(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.wantReport(e.programs(nil, "postgres", "mariadb", "redis", "sqlite"), map[string]string{
			"postgres.accounts": "100000", "postgres.transactions": "200", "postgres.balanced": "t", "postgres.recovered": "1",
			"mariadb.method": "O_DIRECT", "mariadb.aio": "1", "mariadb.rows": "10000", "mariadb.updates": "200", "mariadb.recovered": "1",
			"redis.keys": "20001", "redis.counter": "5000",
			"sqlite.rows": "200|200", "sqlite.check": "ok", "sqlite.mode": "wal",
		})
	})
}

// What a database has committed is in the volume when its container, with its VM, is killed.
func TestRealDatabaseOfAKilledContainer(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.patient()
		const begin = `
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
cd /work
as() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }
ask() { as psql -h /work -AtXqc "$1" postgres; }
start() { as pg_ctl -D data -w -t 300 -l log -o '-k /work -c listen_addresses= -c recovery_init_sync_method=syncfs' start >/dev/null; }
`
		image := e.programImage()
		args := func(script string) []string {
			return slices.Concat(image, []string{"bash", "-euo", "pipefail", "-c", begin + script})
		}
		id := e.startReady("committed", args(`
chown postgres . && as initdb -D data -A trust --locale=C.UTF-8 --no-sync >/dev/null && start
ask 'create table t (n int)'
for i in $(seq 20); do echo "insert into t values ($i);"; done | as psql -h /work -Xq postgres
echo committed
(echo 'begin; insert into t select generate_series(1, 100000);' && sleep 1000) | as psql -h /work -Xq postgres`)...)
		e.ok("kill", id)
		e.ok("wait", id)
		got := e.report(args(`
start
echo "rows=$(ask 'select count(*), sum(n) from t')"
echo "recovered=$(grep -c 'redo done' log)"
as pg_ctl -D data -m fast -w stop >/dev/null`)...)
		e.wantReport(got, map[string]string{"rows": "20|210", "recovered": "1"})
	})
}

func TestRealWebServer(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.wantReport(e.programs(nil, "nginx"), map[string]string{"nginx.complete": "4000", "nginx.failed": "0", "nginx.bytes": "16384000"})
	})
}

func TestRealGit(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.wantReport(e.programs(nil, "git"), map[string]string{
			"git.files": "2500", "git.status": "0", "git.tree": "304f929ccb2195c53fb41c78c102d53c64e5f352", "git.fsck": "0",
		})
	})
}

func TestRealTree(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.wantReport(e.programs(nil, "tree"), map[string]string{"tree.found": "1000", "tree.bytes": "3893", "tree.lines": "1000", "tree.left": "tree.tar"})
	})
}

// Programs that make many files of the packages that they are given.
func TestRealInstallers(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.wantReport(e.programs(nil, "npm", "pip", "apt"), map[string]string{
			"npm.packages": "40", "npm.sum": "780",
			"pip.packages": "11", "pip.sum": "45",
			"apt.installed": "5", "apt.configured": "configure", "apt.left": "0",
		})
	})
}

func TestRealCompilers(t *testing.T) {
	eachRuntime(t, func(e *env) {
		goroot, err := exec.Command("go", "env", "GOROOT").Output()
		e.noErr(err)
		flags := []string{"-v", strings.TrimSpace(string(goroot)) + ":/usr/local/go:ro"}
		e.wantReport(e.programs(flags, "gcc", "go"), map[string]string{
			"gcc.sum": "5740", "gcc.objects": "11", "gcc.again": "nothing",
			"go.compiled": "11", "go.again": "0",
		})
	})
}

func TestRealJavaSeesItsLimits(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.wantReport(e.programs([]string{"--cpus", "1", "--memory", "512m"}, "java"), map[string]string{
			"java.cpus": "1", "java.memory": "512.00M", "java.heap": "134217728", "java.serial": "true",
		})
	})
}

// Sessions, copies and a file system over ssh.
func TestRealSSH(t *testing.T) {
	eachRuntime(t, func(e *env) {
		flags := []string{"--cap-add", "SYS_ADMIN", "--device", "/dev/fuse", "--security-opt", "apparmor=unconfined"}
		e.wantReport(e.programs(flags, "sshd", "rsync", "sshfs"), map[string]string{
			"sshd.command": "through", "sshd.code": "7", "sshd.terminal": "0 0", "sshd.copied": "yes", "sshd.forward9001": "SSH", "sshd.forward9002": "SSH",
			"rsync.first": "200", "rsync.second": "3", "rsync.equal": "yes",
			"sshfs.type": "fuseblk", "sshfs.files": "30", "sshfs.moved": "file 1", "sshfs.read": "yes",
		})
	})
}

func TestRealDebuggers(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.wantReport(e.programs([]string{"--cap-add", "SYS_PTRACE"}, "strace", "gdb"), map[string]string{
			"strace.started": "10", "strace.summary": "2", "strace.attached": "yes", "strace.injected": "1",
			"gdb.attached": "inner outer main ", "gdb.variable": "43", "gdb.written": "99", "gdb.stopped": "inner outer main  43", "gdb.crash": "134", "gdb.core": "inner outer main ",
		})
	})
}

// An ordinary user's sandbox, which needs no capability.
func TestRealBubblewrap(t *testing.T) {
	eachRuntime(t, func(e *env) {
		e.wantReport(e.programs([]string{"--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"}, "bubblewrap"), map[string]string{
			"bubblewrap.user": "1000", "bubblewrap.root": "0", "bubblewrap.host": "inside", "bubblewrap.readonly": "Read-only file system",
			"bubblewrap.tmp": "new", "bubblewrap.links": "1", "bubblewrap.made": "5",
		})
	})
}
