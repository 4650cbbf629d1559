package payload

import (
	"sync"
	"time"

	"github.com/gearsfs/gearsfs"
)

// pendingFor is how long after the final answer to a command an entry with it may
// still come, at the most: where the answer was lost, the leader may have it until
// it gives up the session that it came from (gearsfs.SessionTTL, and what it
// takes to notice).
const pendingFor = 10 * time.Minute

// pending are the segments of this node that entries to come may refer to. An
// upload is in it from before anybody hears of its extents until some time after
// the final answer to its command, however long that waits for room. It is counted
// by segment, so that it costs nothing: a segment with one of them is swept later.
//
// Nobody else can know: of what a command of this node's Locals has uploaded, the
// one who leads has only the command, in a queue.
type pending struct {
	mu       sync.Mutex
	now      func() time.Time // never jumps
	since    time.Time        // uploads from before are not known: of an earlier life
	segments map[uint64]*pendingSegment
}

type pendingSegment struct {
	uploads int       // whose command has no final answer
	ended   time.Time // when one last had
}

func (p *pending) init() {
	p.now = time.Now
	p.since = p.now()
	p.segments = make(map[uint64]*pendingSegment)
}

// begin notes extents that were appended here.
func (p *pending) begin(extents []gearsfs.Extent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range extents {
		s := p.segments[extents[i].Segment]
		if s == nil {
			s = new(pendingSegment)
			p.segments[extents[i].Segment] = s
		}
		s.uploads++
	}
}

// end notes that the command has its final answer, once for what was begun.
func (p *pending) end(extents []gearsfs.Extent) {
	if len(extents) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for i := range extents {
		if s := p.segments[extents[i].Segment]; s != nil {
			s.uploads--
			s.ended = now
		}
	}
}

// list returns the segments: gearsfs.ErrBusy while this node does not know.
func (p *pending) list() ([]uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if now.Sub(p.since) < pendingFor {
		return nil, gearsfs.ErrBusy.Because("uploads of before the node was started may still come, for %v", pendingFor-now.Sub(p.since).Truncate(time.Second))
	}
	return p.listLocked(now), nil
}

// known is list for who knows that nothing is left of an earlier life.
func (p *pending) known() []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listLocked(p.now())
}

func (p *pending) listLocked(now time.Time) (segments []uint64) {
	for number, s := range p.segments {
		if s.uploads == 0 && now.Sub(s.ended) >= pendingFor {
			delete(p.segments, number)
			continue
		}
		segments = append(segments, number)
	}
	return segments
}
