package units

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
		got, err := ParseDuration(in)
		require.NoError(t, err, in)
		assert.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "5", "-1s", "-2d", "d", "1y", "1d-3h", "1e30w", "1h2d", "1d1w", "NaNd", "1 d"} {
		_, err := ParseDuration(in)
		assert.Error(t, err, in)
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "4096": 4096, "64K": 64 << 10, "10M": 10 << 20, "1G": 1 << 30, "3g": 3 << 30,
		"18446744073709551615": 1<<64 - 1,
	} {
		got, err := ParseSize(in)
		require.NoError(t, err, in)
		assert.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "K", "-1", "1Q", "1.5M", "1KB", "18446744073709551615K", "0x10", " 1"} {
		_, err := ParseSize(in)
		assert.Error(t, err, in)
	}
}
