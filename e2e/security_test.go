package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

const capsScript = `for set in Inh Prm Eff Bnd Amb; do echo "$set=$(grep Cap$set /proc/self/status | cut -f2)"; done; ` +
	`echo "nnp=$(grep NoNewPrivs /proc/self/status | cut -f2)"; echo "seccomp=$(grep '^Seccomp:' /proc/self/status | cut -f2)"; `

func TestCapabilities(t *testing.T) {
	eachRuntime(t, func(e *env) {
		const none, standard = "0000000000000000", "00000000a80425fb"
		e.wantReport(e.report("busybox", "sh", "-c", capsScript), map[string]string{
			"Inh": none, "Prm": standard, "Eff": standard, "Bnd": standard, "Amb": none, "nnp": "0", "seccomp": "2",
		})
		got := e.report("--cap-drop", "ALL", "busybox", "sh", "-c", capsScript+`
echo "chown=$(chown 5 /etc/in-image 2>&1 | grep -o 'Operation not permitted')"`)
		e.wantReport(got, map[string]string{"Inh": none, "Prm": none, "Eff": none, "Bnd": none, "chown": "Operation not permitted"})
		got = e.report("--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--cap-add", "SYS_TIME", "busybox", "sh", "-c", capsScript)
		e.wantReport(got, map[string]string{"Eff": "0000000002000400", "Bnd": "0000000002000400", "Amb": none})
	})
}

func TestSeccompDefault(t *testing.T) {
	eachRuntime(t, func(e *env) {
		const script = `
echo "allowed=$(probe syscall personality 0)"
echo "argument=$(probe syscall personality 0x40000)"
echo "unshare=$(probe syscall unshare 0x10000000)"`
		// The default profile looks at the argument of personality.
		e.wantReport(e.report("busybox", "sh", "-c", script), map[string]string{"allowed": "ok", "argument": "EPERM", "unshare": "EPERM"})
		e.wantReport(e.report("--security-opt", "seccomp=unconfined", "busybox", "sh", "-c", capsScript+script),
			map[string]string{"allowed": "ok", "argument": "ok", "seccomp": "0"})
	})
}

func TestSeccompFile(t *testing.T) {
	eachRuntime(t, func(e *env) {
		profile := filepath.Join(e.diskDir(), "profile.json")
		e.noErr(os.WriteFile(profile, []byte(`{
	"defaultAction": "SCMP_ACT_ALLOW",
	"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
	"syscalls": [
		{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
		{"names": ["setdomainname"], "action": "SCMP_ACT_KILL_PROCESS"},
		{"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
	]
}`), 0o644))
		got := e.report("--security-opt", "seccomp="+profile, "busybox", "sh", "-c", `
echo "mkdir=$(mkdir /made 2>&1 | grep -o 'Function not implemented')"
echo "personality=$(probe syscall personality 0) $(probe syscall personality 8)"
probe syscall setdomain; echo "killed=$?"`)
		e.wantReport(got, map[string]string{"mkdir": "Function not implemented", "personality": "ok EPERM", "killed": "159"})

		// It holds for exec processes too.
		id := e.start("--security-opt", "seccomp="+profile, "busybox", "sleep", "1000")
		r := e.docker("exec", id, "mkdir", "/made")
		e.wantCode(r, 1)
		e.wantPart("stderr of exec", r.stderr, "Function not implemented")
	})
}

func TestNoNewPrivileges(t *testing.T) {
	eachRuntime(t, func(e *env) {
		id := e.start("--security-opt", "no-new-privileges", "busybox", "sh", "-c", "cp /bin/busybox /bin/setuid-id; chmod 4755 /bin/setuid-id; echo ready; sleep 1000")
		e.wantReport(parseReport(e.exec(id, "sh", "-c", capsScript)), map[string]string{"nnp": "1"})
	})
}

func TestProcAndSysAreProtected(t *testing.T) {
	eachRuntime(t, func(e *env) {
		got := e.report("busybox", "sh", "-c", `
echo "proc-sys=$(echo 1 2>&1 >/proc/sys/kernel/domainname | grep -o 'Read-only file system')"
[ -e /proc/sysrq-trigger ] && echo "sysrq=$(echo h 2>&1 >/proc/sysrq-trigger | grep -o 'Read-only file system')" || echo "sysrq=Read-only file system"
echo "sys=$(touch /sys/kernel/x 2>&1 | grep -o 'Read-only file system')"
[ -e /proc/kcore ] && echo "kcore=$(head -c 8 /proc/kcore | wc -c)" || echo "kcore=0"
[ -e /proc/keys ] && echo "keys=$(cat /proc/keys | wc -c)" || echo "keys=0"
[ -d /sys/firmware ] && echo "firmware=$(ls /sys/firmware | wc -l)" || echo "firmware=0"
echo "mount=$(mount -t tmpfs none /tmp 2>&1 | grep -o 'ermission denied')"
for node in mem:1:1 kmsg:1:11 hwrng:10:183; do
	IFS=:; set -- $node; unset IFS
	mknod /tmp/$1 c $2 $3 && (: </tmp/$1) 2>&1 | grep -q -i -e 'not permitted' -e 'no such device' || echo "opened=$1"
done
`)
		e.wantReport(got, map[string]string{
			"proc-sys": "Read-only file system", "sysrq": "Read-only file system", "sys": "Read-only file system",
			"kcore": "0", "keys": "0", "firmware": "0", "mount": "ermission denied",
		})
		if node, ok := got["opened"]; ok {
			e.Errorf("a node that the container made of the device %s can be opened", node)
		}
	})
}
