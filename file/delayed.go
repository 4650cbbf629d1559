package file

import (
	"github.com/gearsfs/gearsfs"
	"github.com/gearsfs/gearsfs/stream"
	"github.com/gearsfs/gearsfs/wire"
)

// delayedMax bounds the records of a stream that wait for their time: beside
// their rows they take about 100 bytes each in memory while it is in use.
const delayedMax = 1_000_000

var errDelayedMax = gearsfs.ErrOverload.Because("a stream has at most %d records that wait for their time", delayedMax)

// untilOf returns the log time before which the records of a put can't be
// taken, 0 where that is now.
func untilOf(c *context, op *wire.Put) uint64 {
	until := op.At
	if op.Delay != 0 {
		until = max(until, later(c.now, op.Delay))
	}
	if until <= c.now {
		return 0
	}
	return until
}

// appendUntil appends a record that can be taken at that log time, or at once
// where it is 0.
func appendUntil(s *openStream, r *wire.NewRecord, now, until uint64) gearsfs.Place {
	rec := recordToPut(r, now)
	if until == 0 {
		return s.queue.AppendRecord(rec)
	}
	return s.queue.AppendRecordDelayed(rec, until)
}

// checkDelay checks whether n records of a put may wait for their time.
func checkDelay(c *context, state *stream.State, op *wire.Put, n int) error {
	if untilOf(c, op) != 0 && state.Delayed+uint64(n) > delayedMax {
		return errDelayedMax
	}
	return nil
}

// recordToPut is a new record, which shares its bytes.
func recordToPut(r *wire.NewRecord, now uint64) stream.Record {
	return stream.Record{Data: r.Data, Extents: ExtentsOf(r.Extents), Type: r.Type, Time: now}
}
