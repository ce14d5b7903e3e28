package plan

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func TestKernelParameters(t *testing.T) {
	strict := map[string]string{
		"sys/vm/overcommit_memory": "2\n",
		"meminfo":                  "MemTotal:       24671868 kB\nCommitLimit:    12335932 kB\nCommitted_AS:    1234567 kB\n",
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  map[string]string
	}{
		{"a host without proc", nil, map[string]string{}},
		{"the kernel's own mode", map[string]string{"sys/vm/overcommit_memory": "0\n", "meminfo": strict["meminfo"]}, map[string]string{}},
		{"strict accounting", strict, map[string]string{"vm/overcommit_memory": "2", "vm/overcommit_kbytes": "12335932"}},
		{"strict, without a known limit", map[string]string{"sys/vm/overcommit_memory": "2\n", "meminfo": "CommitLimit: many\n"}, map[string]string{}},
		{"limits below, at and above the guest's", map[string]string{
			"sys/vm/max_map_count": "65530\n", "sys/fs/file-max": "9223372036854775807\n", "sys/user/max_inotify_instances": "8192\n",
			"sys/kernel/threads-max": "8388608\n", "sys/fs/mount-max": "many\n",
		}, map[string]string{"user/max_inotify_instances": "8192", "kernel/threads-max": "8388608"}},
		{"core files of the default name", map[string]string{"sys/kernel/core_pattern": "core\n", "sys/kernel/core_uses_pid": "0\n"}, map[string]string{}},
		{
			"core files of another name",
			map[string]string{"sys/kernel/core_pattern": "/tmp/core.%e\n", "sys/kernel/core_uses_pid": "1\n"},
			map[string]string{"kernel/core_pattern": "/tmp/core.%e", "kernel/core_uses_pid": "1"},
		},
		{
			"a program for core files",
			map[string]string{"sys/kernel/core_pattern": "|/lib/systemd/systemd-coredump %P\n", "sys/kernel/core_uses_pid": "1\n"},
			map[string]string{"kernel/core_pattern": "\n"},
		},
	} {
		proc := t.TempDir()
		for name, text := range c.files {
			path := filepath.Join(proc, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := kernelParameters(proc); !maps.Equal(got, c.want) {
			t.Errorf("%s: kernelParameters = %v, want %v", c.name, got, c.want)
		}
	}
}
