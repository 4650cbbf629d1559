package persist

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gearsfs/gearsfs"
)

// createLog makes an empty log in dir, which exists and is empty.
func createLog(fsys FS, dir string, opts Options) error {
	l, err := newLog(fsys, dir, opts)
	if err != nil {
		return err
	}
	if err := l.rotate(0, head{first: 1}); err != nil {
		return errors.Join(fmt.Errorf("create the log: %w", err), l.dirFile.Close())
	}
	return l.Close()
}

func newLog(fsys FS, dir string, opts Options) (*Log, error) {
	dirFile, err := fsys.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	return &Log{
		fs: fsys, dir: dir, limit: opts, dirFile: dirFile,
		recent: recentEntries{bytesMax: opts.LogCacheBytes},
	}, nil
}

// readLog reads the log in dir and changes nothing there; the log that it
// returns must be repaired or closed. It returns gearsfs.ErrDamaged, with file
// and offset, where something is missing or changed that a crash can't have
// taken away.
func readLog(fsys FS, dir string, opts Options) (*Log, *recovery, error) {
	l, err := newLog(fsys, dir, opts)
	if err != nil {
		if isNotExist(err) {
			return nil, nil, gearsfs.ErrDamaged.Because("%s is missing", dir)
		}
		return nil, nil, err
	}
	r := &recovery{l: l}
	if err := r.read(); err != nil {
		return nil, nil, errors.Join(err, r.abandon())
	}
	return l, r, nil
}

// recovery is the state of reading a log. What it finds in the directory is
//
//	leftovers   needed    spares
//	00000003    00000005  spare-…
//	00000004    00000006
//
// where the needed segments follow each other without a gap, and the newest
// says which is the first of them.
type recovery struct {
	l         *Log
	leftovers []uint64
	spares    []string
	unsure    []entryEnd // entries that nothing read so far says were on disk
}

// entryEnd is where an entry ends in the segment that is being read.
type entryEnd struct {
	index uint64
	end   int64
}

// sure takes over what a record says was on disk when it was written. Where nothing
// was appended yet since the log had been opened, that says nothing of what the
// entries refer to.
func (r *recovery) sure(rec record) {
	if rec.kind == kindStart || rec.kind == kindSeal && rec.typ == typeFound {
		return
	}
	synced := int64(rec.synced)
	if rec.kind == kindMark {
		synced = math.MaxInt64
	}
	n := 0
	for n < len(r.unsure) && r.unsure[n].end <= synced {
		r.l.sure = r.unsure[n].index
		n++
	}
	r.unsure = r.unsure[n:]
}

// sureBefore is sure of a segment's head: a segment has its name when the one before
// is on disk. What that leaves unsure the next record tells of.
func (r *recovery) sureBefore(head record) {
	if head.typ == typeFound {
		for i := range r.unsure {
			r.unsure[i].end = 0
		}
		return
	}
	r.unsure, r.l.sure = nil, r.l.index.last
}

// unsureOf notes an entry, which may replace others.
func (r *recovery) unsureOf(index uint64, end int64) {
	for n := len(r.unsure); n > 0 && r.unsure[n-1].index >= index; n-- {
		r.unsure = r.unsure[:n-1]
	}
	r.l.sure = min(r.l.sure, index-1)
	r.unsure = append(r.unsure, entryEnd{index, end})
}

func (r *recovery) read() error {
	l := r.l
	names, err := l.fs.List(l.dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", l.dir, err)
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := parseSegmentName(name); ok {
			numbers = append(numbers, n)
		} else if strings.HasPrefix(name, sparePrefix) {
			r.spares = append(r.spares, name)
		}
	}
	slices.Sort(numbers)
	slices.Sort(r.spares)
	if len(numbers) == 0 {
		return gearsfs.ErrDamaged.Because("%s holds no log", l.dir)
	}
	first, err := r.firstNeeded(numbers[len(numbers)-1])
	if err != nil {
		return err
	}
	for numbers[0] < first { // the newest is not before the first
		r.leftovers = append(r.leftovers, numbers[0])
		numbers = numbers[1:]
	}
	for i, n := range numbers {
		if want := first + uint64(i); n != want {
			return gearsfs.ErrDamaged.Because("%s is missing", l.path(segmentName(want)))
		}
		if err := r.readSegment(n, i == len(numbers)-1); err != nil {
			return err
		}
	}
	if l.index.lowered {
		return damagedAt(l.segs[0].path, 0, "entries before %d are missing", l.index.frontIndex+1)
	}
	return nil
}

// firstNeeded returns the first segment that is needed, by what the newest says.
func (r *recovery) firstNeeded(number uint64) (first uint64, err error) {
	seg, err := r.openSegment(number)
	if err != nil {
		return 0, err
	}
	reader := segmentReader{f: seg.f, size: seg.size}
	rec, ok, err := reader.record(0)
	if h, isHead := parseHead(rec, number); ok && isHead {
		first = h.first
		for ok && err == nil {
			if f, isFront := parseFront(rec); isFront {
				first = f
			}
			generation := rec.generation
			seg.used += recordBytes(len(rec.payload))
			rec, ok, err = reader.record(seg.used)
			ok = ok && rec.follows(generation)
		}
	}
	if err = errors.Join(err, seg.f.Close()); err != nil {
		return 0, fmt.Errorf("read %s: %w", seg.path, err)
	}
	if first == 0 || first > number {
		return 0, damagedAt(seg.path, 0, "no segment head")
	}
	return first, nil
}

func (r *recovery) openSegment(number uint64) (*segment, error) {
	path := r.l.path(segmentName(number))
	f, err := r.l.fs.OpenReadWrite(path, logWrites)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	size := min(info.Size(), 2*segmentBytesMax)
	return &segment{number: number, path: path, f: f, size: size}, nil
}

// readSegment replays one segment behind those before it.
func (r *recovery) readSegment(number uint64, newest bool) error {
	l := r.l
	seg, err := r.openSegment(number)
	if err != nil {
		return err
	}
	l.segs = append(l.segs, seg)
	l.number = number
	reader := &segmentReader{f: seg.f, size: seg.size}
	for {
		rec, ok, err := reader.record(seg.used)
		if err != nil {
			return fmt.Errorf("read %s: %w", seg.path, err)
		}
		if ok, err = r.replay(seg, rec, ok); err != nil {
			return err
		}
		if !ok {
			break
		}
		seg.used += recordBytes(len(rec.payload))
		if seg.sealed {
			seg.synced = seg.used
			return nil
		}
	}
	if !newest {
		return damagedAt(seg.path, seg.used, "the log goes on in the next segment, but there is no valid record here")
	}
	was, err := reader.wasSynced(seg.used, l.generation)
	if err != nil {
		return fmt.Errorf("read %s: %w", seg.path, err)
	}
	if was {
		return damagedAt(seg.path, seg.used, "no valid record, but a later one says that there was")
	}
	return nil
}

// replay does what a record says. It returns false where the record is not one
// of this log's: the end, or damage.
func (r *recovery) replay(seg *segment, rec record, ok bool) (bool, error) {
	l := r.l
	if seg.used == 0 {
		r.sureBefore(rec)
		h, isHead := parseHead(rec, seg.number)
		if !ok || !isHead {
			return false, damagedAt(seg.path, 0, "no segment head")
		}
		return true, r.replayHead(seg, rec.generation, h)
	}
	if !ok || !rec.follows(l.generation) {
		return false, nil
	}
	r.sure(rec)
	switch rec.kind {
	case kindEntry:
		if rec.index == 0 || rec.index > l.index.last+1 {
			return false, damagedAt(seg.path, seg.used, "entry %d follows entry %d", rec.index, l.index.last)
		}
		l.index.add(seg, seg.used, rec.index, rec.term)
		r.unsureOf(rec.index, seg.used+recordBytes(len(rec.payload)))
		l.recent.add(LogEntry{Index: rec.index, Term: rec.term, Type: rec.typ, Data: slices.Clone(rec.payload)})
	case kindHard:
		l.hard = cloneHard(rec.payload)
	case kindFront:
		first, ok := parseFront(rec)
		if !ok || first > seg.number || rec.index > l.index.last {
			return false, damagedAt(seg.path, seg.used, "bad front record")
		}
		r.moveFront(first, rec.index, rec.term)
	case kindStart:
		l.generation = rec.generation
	case kindSeal:
		seg.sealed = true
	case kindHead:
		return false, damagedAt(seg.path, seg.used, "a head in the middle of a segment")
	}
	return true, nil
}

func (r *recovery) replayHead(seg *segment, generation uint64, h head) error {
	l := r.l
	switch {
	case len(l.segs) == 1, h.first == seg.number: // nothing before it counts
		l.index.reset(h.lastIndex, h.lastTerm)
		l.recent.cut(0)
	case h.lastIndex != l.index.last:
		return damagedAt(seg.path, 0, "begins behind entry %d, but the segment before ends with entry %d",
			h.lastIndex, l.index.last)
	case generation != l.generation+1:
		return damagedAt(seg.path, 0, "generation %d follows generation %d", generation, l.generation)
	}
	l.generation = generation
	l.hard = cloneHard(h.hard)
	r.moveFront(h.first, h.frontIndex, h.frontTerm)
	return nil
}

// moveFront cuts off entries that are not needed any more.
func (r *recovery) moveFront(first, index, term uint64) {
	l := r.l
	l.first = max(l.first, first)
	if index > l.index.frontIndex || index == l.index.frontIndex && l.index.lowered {
		l.index.front(index, term)
		l.recent.front(index)
	}
}

// abandon closes what reading has opened.
func (r *recovery) abandon() error {
	var err error
	for _, seg := range r.l.segs {
		err = errors.Join(err, seg.f.Close())
	}
	return errors.Join(err, r.l.dirFile.Close())
}

// repair makes the log ready to be written: what it holds is on disk when
// repair returns, files that are not needed are spares or gone.
func (r *recovery) repair() error {
	l := r.l
	l.appending.Lock()
	defer l.appending.Unlock()
	tail := l.segs[len(l.segs)-1]
	if err := l.syncFile(tail); err != nil {
		return err
	}
	tail.synced = tail.used
	l.restart, l.found = !tail.sealed, true
	if err := l.syncDir(); err != nil {
		return err
	}
	if err := r.keepSpares(); err != nil {
		return err
	}
	if err := l.recycleBefore(l.first); err != nil {
		return err
	}
	for _, n := range r.leftovers {
		if err := l.fs.Remove(l.path(segmentName(n))); err != nil {
			return fmt.Errorf("recycle log segments: %w", err)
		}
	}
	return nil
}

// keepSpares takes over the spare files that can be used.
func (r *recovery) keepSpares() error {
	l := r.l
	for _, name := range r.spares {
		info, err := l.fs.Stat(l.path(name))
		if err == nil {
			if info.Size() == l.limit.SegmentBytes && len(l.spares) < sparesMax {
				l.spares = append(l.spares, spare{name: name, size: info.Size()})
				continue
			}
			err = l.fs.Remove(l.path(name))
		}
		if err != nil {
			return fmt.Errorf("recycle log segments: %w", err)
		}
	}
	return nil
}
