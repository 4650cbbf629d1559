package replica

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDurations(t *testing.T) {
	d := new(durations)
	for _, took := range []time.Duration{-time.Second, 0, 16 * time.Microsecond, 16*time.Microsecond + 1, 100 * time.Microsecond, time.Hour} {
		d.add(took)
	}
	got := d.get()
	upto, n := got.Cumulative()
	require.EqualValues(t, 6, n)
	require.Len(t, upto, durationBounds)
	for _, c := range []struct {
		bound string
		want  uint64
	}{{"16µs", 3}, {"32µs", 4}, {"64µs", 4}, {"128µs", 5}, {"8.388608s", 5}} {
		bound, err := time.ParseDuration(c.bound)
		require.NoError(t, err)
		require.Equal(t, c.want, upto[bound.Seconds()], c.bound)
	}
	require.Equal(t, time.Hour+132*time.Microsecond+1, got.Sum)
}
