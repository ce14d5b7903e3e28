package libvm

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/plan"
)

func TestScratchFileIsSparseFormattedAndNameless(t *testing.T) {
	f, err := makeScratch(&plan.Scratch{SizeMiB: 10 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if st.Nlink != 0 || st.Size != 10<<30 || st.Blocks*512 > 64<<20 {
		t.Errorf("%d links, %d bytes, %d of them on disk; want 0, 10 GiB, few", st.Nlink, st.Size, st.Blocks*512)
	}
	magic := make([]byte, 2)
	if _, err := f.ReadAt(magic, 1024+56); err != nil || string(magic) != "\x53\xef" { // ext4's superblock
		t.Errorf("magic %x, %v", magic, err)
	}
}
