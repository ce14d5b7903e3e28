package plan

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseScratch(t *testing.T) {
	for text, want := range map[string]Scratch{
		"/var/lib/docker=20G": {"/var/lib/docker", 20 << 10},
		"/a//b/=512M":         {"/a/b", 512},
		"/x=1T":               {"/x", 1 << 20},
		"/with=sign=64M":      {}, // the size is what follows the first sign
	} {
		got, err := parseScratch(text)
		if want == (Scratch{}) {
			if err == nil {
				t.Errorf("parseScratch(%q) = %+v, want an error", text, got)
			}
			continue
		}
		if err != nil || *got != want {
			t.Errorf("parseScratch(%q) = %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"20G", "relative=20G", "/=20G", "/x=", "/x=20", "/x=-1G", "/x=0G", "/x=1M", "/x=17T", "/x=9999999999G", "/x=G"} {
		if got, err := parseScratch(text); err == nil || !strings.Contains(err.Error(), `"`+text+`"`) {
			t.Errorf("parseScratch(%q) = %+v, %v, want an error that quotes it", text, got, err)
		}
	}
}

func TestScratchIsMountedUnlessSomethingIs(t *testing.T) {
	spec := minimal()
	spec.Annotations = map[string]string{AnnotationScratch: "/data=1G"}
	plan := rewrite(t, spec)
	last := plan.Guest.Mounts[len(plan.Guest.Mounts)-1]
	if plan.Scratch == nil || last.Destination != "/data" || last.Type != "ext4" || last.Source != guestScratch {
		t.Errorf("scratch = %+v, last mount %+v", plan.Scratch, last)
	}
	spec.Mounts = []specs.Mount{{Destination: "/data/", Type: "tmpfs", Source: "tmpfs"}}
	plan = rewrite(t, spec)
	if plan.Scratch != nil || len(plan.Guest.Mounts) != 1 || !strings.Contains(strings.Join(plan.Warnings, "\n"), "no scratch disk at /data") {
		t.Errorf("over a mount: scratch = %+v, mounts %+v, warnings %q", plan.Scratch, plan.Guest.Mounts, plan.Warnings)
	}
	plan, err := Rewrite(minimal(), "/r", &HostFacts{CPUs: 1}, Overrides{Scratch: "/other=2G"})
	if err != nil || plan.Scratch == nil || *plan.Scratch != (Scratch{"/other", 2048}) {
		t.Errorf("by flag: %+v, %v", plan, err)
	}
}
