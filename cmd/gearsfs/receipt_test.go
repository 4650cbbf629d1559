package main

import (
	"testing"

	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestReceiptText(t *testing.T) {
	for _, r := range []gearsfs.Receipt{
		{Ino: 2, Key: "a b", Place: gearsfs.Place{Pos: 0, Seq: 1}, Fence: 1},
		{Ino: 1<<64 - 1, Key: "k", Place: gearsfs.Place{Pos: 1<<64 - 1, Seq: 1<<64 - 1}, Fence: 1<<64 - 1},
	} {
		got, err := parseReceipt(receiptText(r), r.Key)
		require.NoError(t, err)
		assert.Equal(t, r, got)
	}
	for _, bad := range []string{
		"", ".", "1.2.3", "1.2.3.4.5", "1.2.3.", "1.2.3.x", "01.2.3.4", "+1.2.3.4", "1.2.3.-4", " 1.2.3.4", "1.2.3.4\n",
		"1.2.3.18446744073709551616", "0.2.3.4", "1.2.0.4", "1.2.3.0", "1_0.2.3.4",
	} {
		_, err := parseReceipt(bad, "k")
		assert.Equal(t, exitUsage, exitStatus(err), "%q", bad)
	}
}

func FuzzReceipt(f *testing.F) {
	f.Add("1.2.3.4")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := parseReceipt(s, "k"); err == nil {
			assert.Equal(t, s, receiptText(r))
		}
	})
}
