package transport

import (
	"fmt"

	"github.com/gearsfs/gearsfs"
)

// NoticeHandler is a Handler that is told the peer's notices, too. To a Handler
// that is none they are lost.
type NoticeHandler interface {
	Handler

	// Notice is called for each notice in the order in which they were sent, on
	// the goroutine that reads from the connection: it must not wait. body
	// belongs to the NoticeHandler.
	Notice(body []byte)
}

// Bits of HELLO's features that are this package's own.
const (
	// featureNotices: whoever says this handles NOTICE, or passes over it.
	featureNotices uint64 = 1 << 63

	// featureShared: whoever says this may share a goroutine with others.
	featureShared uint64 = 1 << 62

	// featuresOwn is what Config.Features must not contain.
	featuresOwn = featureNotices | featureShared
)

// Notify sends a one-way message and returns without waiting. It has no answer:
// it arrives, or the connection is lost. Notices are handed to the peer's
// NoticeHandler in the order in which they were sent, and in one order with
// calls, but overtake those that wait for room in the peer's window, here, or
// for their answers to be read, there. The window does not count them: a
// NoticeHandler that cannot keep up has to drop some.
//
// body must not be changed any more. Errors, with each of which nothing was
// sent: gearsfs.ErrTooBig for what exceeds a frame, gearsfs.ErrOverload where more
// than Config.NoticeBytesMax would not be written yet, gearsfs.ErrUnknownOp where
// the peer knows no notices, and one with ErrLost and Err's in its chain where
// the connection has ended.
func (c *Conn) Notify(body []byte) error {
	f := frame{kind: kindNotice, body: body}
	c.mu.Lock()
	err := c.startErrorLocked()
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrLost, err)
	case c.theirs.features&featureNotices == 0:
		err = gearsfs.ErrUnknownOp.Because("the peer knows no notices")
	case f.bytes() > c.frameBytesMax:
		err = gearsfs.ErrTooBig.Because("a notice of %d bytes, at most %d are possible", len(body), c.frameBytesMax-overheadBytes)
	case c.noticeBytes+f.bytes() > c.cfg.NoticeBytesMax:
		err = gearsfs.ErrOverload.Because("%d bytes of notices wait to be written", c.noticeBytes)
	default:
		c.noticeBytes += f.bytes()
		c.queue = append(c.queue, f)
	}
	own := c.claimLocked()
	c.mu.Unlock()
	switch {
	case !own:
	case len(body) <= copyBytesMax:
		c.flush()
	default:
		// Its checksum alone takes longer than waking the flusher.
		c.handOver()
	}
	return err
}

// handleNotice hands a notice to the handler.
func (c *Conn) handleNotice(body []byte) {
	if c.notices != nil {
		c.watched()
		c.notices.Notice(body)
	}
}
