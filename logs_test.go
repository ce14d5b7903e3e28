package main

import "testing"

func TestVisible(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "",
		"[1.0] Kernel panic\r\n": "[1.0] Kernel panic\n",
		"\tat ü\n":               "\tat ü\n",
		"\x1b]0;title\a\x1b[2J":  `\x1b]0;title\a\x1b[2J`,
		"over\rwritten\x00":      `over\rwritten\x00`,
		"\u202egnitirw\xff":      `\u202egnitirw` + "�",
	} {
		if got := visible(text); got != want {
			t.Errorf("visible(%q) = %q, want %q", text, got, want)
		}
	}
}
