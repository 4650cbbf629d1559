package replica

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// setTimer is a timer that the test fires.
type setTimer struct{ set []time.Duration } // and not taken

func (s *setTimer) Reset(d time.Duration) bool {
	s.set = append(s.set, d)
	return len(s.set) > 1
}

func (s *setTimer) Stop() bool { return false }

// taken returns how the timer was set since the last call.
func (s *setTimer) taken() []time.Duration {
	set := s.set
	s.set = nil
	return set
}

// TestLateness: what stays alone is due after commitDelay. In a flow the timer is
// set rarely, and what stays at its end is due all the same; behind it nothing runs.
func TestLateness(t *testing.T) {
	clock := new(setTimer)
	late := lateness{timer: clock}
	late.begin()
	require.Equal(t, []time.Duration{commitDelay}, clock.taken())
	require.True(t, late.fire())
	require.True(t, late.due.Swap(false))
	late.staying.Store(false)

	for range 3 {
		late.begin()
		late.staying.Store(false)
	}
	require.Equal(t, []time.Duration{commitDelay}, clock.taken())
	require.False(t, late.fire())
	require.Equal(t, []time.Duration{flowDelay}, clock.taken())
	late.begin()
	late.staying.Store(false)
	late.begin()
	require.False(t, late.fire())
	require.Equal(t, []time.Duration{flowDelay}, clock.taken())
	require.True(t, late.fire())
	late.staying.Store(false)
	require.Empty(t, clock.taken())

	late.begin()
	late.staying.Store(false)
	require.False(t, late.fire(), "nothing stays")
	require.Equal(t, []time.Duration{commitDelay}, clock.taken())
	late.begin()
	require.Equal(t, []time.Duration{commitDelay}, clock.taken(), "it had ended")
}
