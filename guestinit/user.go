package main

import (
	"bufio"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// withHome adds HOME to env if it is not there: from the /etc/passwd of the
// calling thread's root, or the root directory, as runc does.
func withHome(env []string, uid uint32) []string {
	if home, ok := environment(env, "HOME"); ok && home != "" {
		return env
	}
	home := "/"
	if f, err := os.Open("/etc/passwd"); err == nil {
		home = homeOf(io.LimitReader(f, 4<<20), uid)
		f.Close()
	}
	env = slices.DeleteFunc(slices.Clone(env), func(setting string) bool { return setting == "HOME=" })
	return append(env, "HOME="+home)
}

// homeOf finds the home directory of uid in a passwd file.
func homeOf(passwd io.Reader, uid uint32) string {
	lines := bufio.NewScanner(passwd)
	for lines.Scan() {
		fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(fields) < 6 {
			continue
		}
		if n, err := strconv.ParseUint(fields[2], 10, 32); err == nil && uint32(n) == uid && fields[5] != "" {
			return fields[5]
		}
	}
	return "/"
}
