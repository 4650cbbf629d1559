package wordcount

import (
	"encoding/binary"

	"github.com/gearsfs/gearsfs"
)

// A report is what a worker tells the sender: an acknowledgement of one leased
// batch (Work is set) in stream "acks", or its result in stream "result".
type report struct {
	Settled []workID // batches whose leases it settled since its last report
	Work    *work
	Total   Counts // of a result: all that this worker settled in the run
	Failure string // of a result: why the run can't be counted
}

// A workID names an acknowledgement: the fence and the seq of its first record.
type workID struct {
	Fence uint64
	First gearsfs.Seq
}

// A work is one leased batch and what was counted in it.
type work struct {
	ID     workID
	Spans  []span // its records, in order
	Counts Counts
	Words  []Frequency // where the run asks for them
}

// A span is the records from First to Last, both included.
type span struct {
	First, Last gearsfs.Seq
}

// A report travels as unsigned varints: the version, then the fields in the
// order of the types above, each list behind its length, a span as the
// distance from the last one's end and its length, each string behind its
// length. Whether there is Work is told by its number of spans, never 0.
const reportVersion = 1

func (r *report) marshal() []byte {
	b := binary.AppendUvarint(nil, reportVersion)
	b = binary.AppendUvarint(b, uint64(len(r.Settled)))
	for _, id := range r.Settled {
		b = binary.AppendUvarint(b, id.Fence)
		b = binary.AppendUvarint(b, uint64(id.First))
	}
	if w := r.Work; w == nil {
		b = binary.AppendUvarint(b, 0)
	} else {
		b = binary.AppendUvarint(b, uint64(len(w.Spans)))
		var last gearsfs.Seq
		for _, s := range w.Spans {
			b = binary.AppendUvarint(b, uint64(s.First-last))
			b = binary.AppendUvarint(b, uint64(s.Last-s.First))
			last = s.Last
		}
		b = binary.AppendUvarint(b, w.ID.Fence)
		b = binary.AppendUvarint(b, uint64(w.ID.First))
		b = appendCounts(b, w.Counts)
		b = binary.AppendUvarint(b, uint64(len(w.Words)))
		for _, f := range w.Words {
			b = binary.AppendUvarint(b, f.Count)
			b = binary.AppendUvarint(b, uint64(len(f.Word)))
			b = append(b, f.Word...)
		}
	}
	b = appendCounts(b, r.Total)
	b = binary.AppendUvarint(b, uint64(len(r.Failure)))
	return append(b, r.Failure...)
}

func appendCounts(b []byte, c Counts) []byte {
	b = binary.AppendUvarint(b, c.Lines)
	b = binary.AppendUvarint(b, c.Words)
	return binary.AppendUvarint(b, c.Bytes)
}

// unmarshalReport returns gearsfs.ErrProtocol for what marshal did not make.
func unmarshalReport(data []byte) (*report, error) {
	d := decoder{rest: data}
	if v := d.uvarint(); !d.bad && v != reportVersion {
		return nil, gearsfs.ErrVersion.Because("a worker reports in version %d, this sender reads %d", v, reportVersion)
	}
	r := &report{}
	for n := d.length(2); n > 0; n-- {
		r.Settled = append(r.Settled, d.id())
	}
	if n := d.length(2); n > 0 {
		r.Work = d.work(n)
	}
	r.Total = d.counts()
	r.Failure = string(d.bytes())
	if d.bad || len(d.rest) > 0 {
		return nil, gearsfs.ErrProtocol.Because("a worker's report can't be read")
	}
	return r, nil
}

// A decoder reads from rest; once something is missing it is bad for good and
// returns zeros.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.rest, d.bad = nil, true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

// length reads the length of a list whose elements take at least so many bytes
// each, so that no list is longer than what is there to read.
func (d *decoder) length(elementBytesMin uint64) uint64 {
	n := d.uvarint()
	if n > uint64(len(d.rest))/elementBytesMin {
		d.rest, d.bad = nil, true
		return 0
	}
	return n
}

func (d *decoder) bytes() []byte {
	n := d.length(1)
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) id() workID {
	return workID{d.uvarint(), gearsfs.Seq(d.uvarint())}
}

func (d *decoder) counts() Counts {
	return Counts{d.uvarint(), d.uvarint(), d.uvarint()}
}

// work reads a work of so many spans. They must rise, or they are no spans.
func (d *decoder) work(spans uint64) *work {
	w := &work{Spans: make([]span, 0, spans)}
	var last gearsfs.Seq
	for range spans {
		first := last + gearsfs.Seq(d.uvarint())
		end := first + gearsfs.Seq(d.uvarint())
		if first <= last || end < first {
			d.rest, d.bad = nil, true
			return w
		}
		w.Spans = append(w.Spans, span{first, end})
		last = end
	}
	w.ID = d.id()
	w.Counts = d.counts()
	for n := d.length(2); n > 0; n-- {
		w.Words = append(w.Words, Frequency{Count: d.uvarint(), Word: string(d.bytes())})
	}
	return w
}
