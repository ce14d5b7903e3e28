package main

import "testing"

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{
		"-1": -1, "0": 0, "4096": 4096, "10m": 10 << 20, "10M": 10 << 20, "1.5g": 3 << 29, "2 KiB": 2048, "3kb": 3072, "7b": 7, "1t": 1 << 40,
	} {
		if got, err := parseBytes(text); err != nil || got != want {
			t.Errorf("parseBytes(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-2", "10q", "m", "1e30", "9999999p", "1mm"} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("parseBytes(%q) = %d, want an error", text, got)
		}
	}
}
