package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseDuration(t *testing.T) {
	day := 24 * time.Hour
	for in, want := range map[string]time.Duration{
		"0": 0, "500ms": 500 * time.Millisecond, "2h": 2 * time.Hour, "1h30m": 90 * time.Minute,
		"7d": 7 * day, "2w": 14 * day, "1d12h": 36 * time.Hour, "1w1d1s": 8*day + time.Second, "1.5d": 36 * time.Hour,
	} {
		got, err := parseDuration(in)
		require.NoError(t, err, in)
		assert.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "5", "-1s", "-2d", "d", "1y", "1d-3h", "1e30w", "1h2d", "1d1w", "NaNd", "1 d"} {
		_, err := parseDuration(in)
		assert.Error(t, err, in)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "4096": 4096, "64K": 64 << 10, "10M": 10 << 20, "1G": 1 << 30, "3g": 3 << 30,
		"18446744073709551615": 1<<64 - 1,
	} {
		got, err := parseSize(in)
		require.NoError(t, err, in)
		assert.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "K", "-1", "1Q", "1.5M", "1KB", "18446744073709551615K", "0x10", " 1"} {
		_, err := parseSize(in)
		assert.Error(t, err, in)
	}
}

func TestCountFlag(t *testing.T) {
	for _, in := range []string{"", "0", "-1", "1.5", "ALL", "99999999999999999999"} {
		var f countFlag
		assert.Error(t, f.Set(in), in)
		assert.False(t, f.set, in)
	}
	var n, all countFlag
	require.NoError(t, n.Set("12"))
	assert.Equal(t, countFlag{value: 12, set: true}, n)
	require.NoError(t, all.Set("all"))
	assert.Equal(t, countFlag{all: true, set: true}, all)
}

func TestAfterFlag(t *testing.T) {
	var f afterFlag
	require.NoError(t, f.Set("0"))
	assert.Equal(t, afterFlag{set: true}, f)
	require.NoError(t, f.Set("end"))
	assert.True(t, f.end)
	assert.Error(t, f.Set("-1"))
	assert.Error(t, f.Set("start"))
}

func TestParseKeys(t *testing.T) {
	keys, err := parseKeys("urgent,normal")
	require.NoError(t, err)
	assert.Len(t, keys, 2)
	for _, in := range []string{"", "a,", ",a", "a/b", ".", "a,..", "a\nb"} {
		_, err := parseKeys(in)
		assert.Equal(t, exitUsage, exitStatus(err), "%q", in)
	}
}
