package dgm

import (
	"slices"

	"github.com/gearsfs/gearsfs"
)

// recentMax bounds the streams that are remembered as put to of late.
const recentMax = 256

// recent remembers the streams to which was put of late, those that are gone
// again or are in other files too: who waits for a misspelt key may find it
// there. It is guarded by tenure.mu.
type recent struct {
	at   []place
	next int // the oldest, once there are recentMax
	have map[place]bool
	last place
}

func (r *recent) note(at place) {
	if at == r.last || r.have[at] {
		r.last = at
		return
	}
	if r.have == nil {
		r.have = make(map[place]bool)
	}
	if len(r.at) < recentMax {
		r.at = append(r.at, at)
	} else {
		delete(r.have, r.at[r.next])
		r.at[r.next] = at
		r.next = (r.next + 1) % recentMax
	}
	r.have[at], r.last = true, at
}

// keys are those put to of late in a file, or anywhere for one that is missing.
func (r *recent) keys(ino gearsfs.Ino) []gearsfs.Key {
	var keys []gearsfs.Key
	for _, at := range r.at {
		if (ino == 0 || at.ino == ino) && !slices.Contains(keys, at.key) {
			keys = append(keys, at.key)
		}
	}
	return keys
}
