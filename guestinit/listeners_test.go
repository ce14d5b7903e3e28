package main

import (
	"slices"
	"strings"
	"testing"
)

// A table as Linux 6.1 writes it, little-endian.
const tcp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0000000000000000FFFF00000100007F:0051 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 00000000000000000000000001000000:1F90 00000000000000000000000001000000:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4 1
`

const tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000 100 0 0 10 0
   1: 0F02000A:C350 0202000A:0050 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0000000000000000 100 0 0 10 0
`

func TestLocalAddresses(t *testing.T) {
	for table, want := range map[string][]string{
		tcpTable:  {"127.0.0.1:22"},
		tcp6Table: {"[::]:80", "[::1]:8080", "127.0.0.1:81"},
	} {
		addresses, err := localAddresses(strings.NewReader(table), tcpListen)
		var got []string
		for _, a := range addresses {
			got = append(got, a.String())
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("addresses = %q, %v, want %q", got, err, want)
		}
	}
	for _, line := range []string{"0: 0100007F 0 0A", "0: 0100:0016 0 0A", "0: xyz:0016 0 0A", "0: 0100007F:fffff 0 0A"} {
		if addresses, err := localAddresses(strings.NewReader(line), tcpListen); err == nil {
			t.Errorf("%q gives %v", line, addresses)
		}
	}
}
