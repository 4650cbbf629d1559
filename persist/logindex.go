package persist

import "sort"

// logIndex knows where the log's entries are, in memory that grows with the
// bytes and the cuts in the log, not with its entries.
//
// Invariants:
//
//  1. runs hold exactly the entries in (frontIndex, last], by rising index, but
//     the first run may reach down to entries that are cut off at the front.
//  2. Within a run entries follow each other in one segment by one, with only
//     records of other kinds between them.
//  3. terms hold the first index of each stretch of entries of one term.
type logIndex struct {
	frontIndex uint64 // the last entry cut off, or the one before the first
	frontTerm  uint64
	last       uint64
	lowered    bool // an entry came in front of the front, whose term is unknown
	split      bool // the next entry begins a run
	runs       []logRun
	terms      []termStart
}

// logRun is a stretch of entries in one segment.
type logRun struct {
	first, last uint64
	seg         *segment
	points      []logPoint // the first entry's, then one per pointBytes at least
}

type logPoint struct {
	index uint64
	off   int64
}

type termStart struct{ index, term uint64 }

const pointBytes = 64 << 10

// add notes the entry at off in seg. One that is there already, and all behind
// it, are replaced.
func (x *logIndex) add(seg *segment, off int64, index, term uint64) {
	if index <= x.last {
		x.cut(index)
	}
	n := len(x.runs)
	if x.split || n == 0 || x.runs[n-1].seg != seg {
		x.runs = append(x.runs, logRun{first: index, last: index, seg: seg, points: []logPoint{{index, off}}})
		x.split = false
	} else {
		run := &x.runs[n-1]
		run.last = index
		if off-run.points[len(run.points)-1].off >= pointBytes {
			run.points = append(run.points, logPoint{index, off})
		}
	}
	if t := len(x.terms); t == 0 || x.terms[t-1].term != term {
		x.terms = append(x.terms, termStart{index, term})
	}
	x.last = index
}

// cut forgets the entries from index on.
func (x *logIndex) cut(index uint64) {
	x.split = true
	x.last = index - 1
	for len(x.runs) > 0 && x.runs[len(x.runs)-1].first >= index {
		x.runs = x.runs[:len(x.runs)-1]
	}
	if n := len(x.runs); n > 0 {
		run := &x.runs[n-1]
		run.last = min(run.last, index-1)
		for run.points[len(run.points)-1].index >= index {
			run.points = run.points[:len(run.points)-1]
		}
	}
	for len(x.terms) > 0 && x.terms[len(x.terms)-1].index >= index {
		x.terms = x.terms[:len(x.terms)-1]
	}
	if x.last < x.frontIndex {
		x.frontIndex, x.frontTerm, x.lowered = x.last, 0, true
	}
}

// front forgets the entries up to index.
func (x *logIndex) front(index, term uint64) {
	x.frontIndex, x.frontTerm, x.lowered = index, term, false
	if x.last < index {
		x.last = index
	}
	gone := 0
	for gone < len(x.runs) && x.runs[gone].last <= index {
		gone++
	}
	x.runs = x.runs[gone:]
	gone = 0
	for gone+1 < len(x.terms) && x.terms[gone+1].index <= index+1 {
		gone++
	}
	x.terms = x.terms[gone:]
	if x.last == index {
		x.terms = nil
	}
}

// reset begins an empty log behind the entry (index, term).
func (x *logIndex) reset(index, term uint64) {
	*x = logIndex{frontIndex: index, frontTerm: term, last: index}
}

// term is that of an entry in [frontIndex, last].
func (x *logIndex) term(index uint64) uint64 {
	if index == x.frontIndex {
		return x.frontTerm
	}
	i := sort.Search(len(x.terms), func(i int) bool { return x.terms[i].index > index })
	return x.terms[i-1].term
}

// find returns the run that holds an entry in (frontIndex, last], and a place
// in its segment from which reading on comes by it.
func (x *logIndex) find(index uint64) (logRun, logPoint) {
	i := sort.Search(len(x.runs), func(i int) bool { return x.runs[i].last >= index })
	run := x.runs[i]
	j := sort.Search(len(run.points), func(j int) bool { return run.points[j].index > index })
	return run, run.points[j-1]
}

// firstNeeded is the number of the first segment that holds an entry behind
// index, or otherwise that of tail.
func (x *logIndex) firstNeeded(index uint64, tail *segment) uint64 {
	need := tail.number
	for i := range x.runs {
		if x.runs[i].last > index {
			need = min(need, x.runs[i].seg.number)
		}
	}
	return need
}

// recentEntries is a bounded cache of the newest entries.
type recentEntries struct {
	bytesMax int
	bytes    int
	entries  []LogEntry // by rising index, without gaps, up to the last
}

// entryOverhead is what an entry costs in the cache beside its data.
const entryOverhead = 64

func (c *recentEntries) add(e LogEntry) {
	c.cut(e.Index)
	c.entries = append(c.entries, e)
	c.bytes += len(e.Data) + entryOverhead
	gone := 0
	for c.bytes > c.bytesMax && gone < len(c.entries) {
		c.bytes -= len(c.entries[gone].Data) + entryOverhead
		gone++
	}
	c.drop(gone)
}

// cut forgets the entries from index on.
func (c *recentEntries) cut(index uint64) {
	for n := len(c.entries); n > 0 && c.entries[n-1].Index >= index; n-- {
		c.bytes -= len(c.entries[n-1].Data) + entryOverhead
		c.entries[n-1] = LogEntry{}
		c.entries = c.entries[:n-1]
	}
}

// front forgets the entries up to index.
func (c *recentEntries) front(index uint64) {
	gone := 0
	for gone < len(c.entries) && c.entries[gone].Index <= index {
		c.bytes -= len(c.entries[gone].Data) + entryOverhead
		gone++
	}
	c.drop(gone)
}

func (c *recentEntries) drop(n int) {
	clear(c.entries[:n]) // the array lives on, the data must not
	c.entries = c.entries[n:]
}

// first is the index of the oldest entry in the cache; of none, ^0.
func (c *recentEntries) first() uint64 {
	if len(c.entries) == 0 {
		return ^uint64(0)
	}
	return c.entries[0].Index
}
