// Package transport carries calls between two processes over one connection:
// any number of them at once, both ways, in frames over TCP, TLS or a unix
// socket. What the calls say is opaque to it.
//
// # Frames
//
// Numbers are big-endian.
//
//	+--------+-----------------+------+==========+--------+
//	| length |       id        | kind |   body   |  sum   |
//	|  u32   |       u64       |  u8  |  bytes   |  u32   |
//	+--------+-----------------+------+==========+--------+
//	 the bytes                                    CRC-32C of
//	 that follow                                  all before
//
//	kind  name      id    body
//	1     HELLO     0     magic "GearsFS\n" | version u32 | features u64 |
//	                      calls u32 | window u64 | frame u32 |
//	                      n u16 | identity, n bytes
//	2     REQUEST   call  the request
//	3     RESPONSE  call  the answer of the Handler
//	4     FAILURE   call  code u32 | reason: the call was not served
//	5     CANCEL    call  empty
//	6     PING      any   empty
//	7     PONG      that  empty
//	8     WINDOW    0     n u64: n more bytes of requests are welcome
//	9     GOAWAY    0     code u32 | reason; code 0: in peace
//	129   NOTICE    0     the notice: a message without an answer
//
// The highest bit of features says that an end knows NOTICE; others are sent
// none. The next one says that it may be read together with others, see below. A code is a gearsfs.Code. Bytes behind what a body is known to hold are
// ignored, and so is a frame of an unknown kind whose highest bit is set; an
// unknown kind without it, a wrong checksum or length, and whatever else
// contradicts this page ends the connection with gearsfs.ErrProtocol. Since a
// stream that was damaged once has lost its frames, nothing is skipped or
// repeated. The frame layout and the first two fields of HELLO are those of all
// versions to come.
//
// # A conversation
//
//	caller                                        called
//	  | HELLO  ------------------------------------> |  checks magic and version
//	  | <------------------------------------ HELLO  |  or GOAWAY: refused
//	  | REQUEST 1, REQUEST 2, REQUEST 3 -----------> |  Handler.Serve, in order
//	  | <------------------------------- RESPONSE 2  |  in any order
//	  | CANCEL 1  ---------------------------------> |  Call.OnCancel
//	  | <------------------- RESPONSE 1, RESPONSE 3  |  the true outcomes
//	  | <-------------------- WINDOW, REQUEST 1 ...  |  both ends can call
//	  | NOTICE  -----------------------------------> |  NoticeHandler.Notice
//	  | PING  -------------------------------------> |  after a silence
//	  | <------------------------------------- PONG  |
//	  | GOAWAY 0  ---------------------------------> |  starts no call any more
//	  | <--------------------------------- GOAWAY 0  |  nor does the other end
//	  | end of stream <---------------> end of stream|  when nothing is in flight
//
// Each end numbers its calls by itself. An end that has sent GOAWAY answers
// calls that come behind it with FAILURE; because the other end answers with a
// GOAWAY of its own, behind its last call, every call has a certain outcome. A
// call whose connection is lost has none: ErrLost.
//
// # Limits
//
// HELLO says how many calls, of how many bytes, an end accepts. A call counts
// until its answer was read; its bytes count until it was handed to the Handler
// and are given back by WINDOW, in large pieces. What a caller starts beyond
// that waits in its own memory, up to a limit. Calls stay in order, whatever they
// wait for.
//
// Nothing stops the reading of a connection: not a Handler, since it must not
// wait, and not writing, since whoever replies or calls only queues a frame.
// So two ends that flood each other can't lock up. An end whose peer does not
// read its answers parks further calls of that peer, which stay within its
// window, and serves them when the answers are gone; if the answers to what it
// serves already grow over Config.UnreadBytesMax it cuts the connection. Notices
// are outside of the windows: who sends them is told when the peer does not read
// them, who receives them handles them at once or drops them.
//
// # Writing
//
// Frames are queued as they are and encoded when they are written. Whoever
// queues one and finds no writer becomes the writer, and writes in one go all
// that is queued, as far as the socket takes it without waiting. What is left is
// written by the flusher, the one goroutine that waits for the socket. Who is
// not to be held up, replying or starting calls one after the other, leaves the
// writing to the flusher at once. While the reading goroutine goes through what
// it has read, all that is queued, by anybody, waits for its end and goes out in
// one write.
//
// A Call that is not the only one in flight lets other goroutines run before it
// writes: with 16 and 64 of them that made two and a half times the calls per
// second, since one write then carries many (go test -bench Call).
//
// # Reading
//
// A connection has a goroutine that reads from it and hands over what came, or,
// where both ends say Config.Shared and the socket is plain, the process's poller
// reads from it: one goroutine for all of these, which reads once from each that
// has something, hands over all of it, and only then has those told who do the
// work (Batch). So what 64 clients ask for at the same time goes on together. The
// poller's sockets are not known to Go's runtime, and the kernel says with what is
// to be read whether the stream ends: no read finds nothing, and over a unix socket
// nobody is woken because the peer has read. A Batch that is going to wait gives the
// reading to another goroutine first. From a Handler that takes long, though it must
// not, the reading is taken away after 4 to 8 ms: others are read from then, while its
// own connection waits for it, so that the order of calls is kept. What Start's done
// does is watched like that only beside calls and notices. Where calls that are
// served in batches come within 2 ms of each other, the goroutine waits for the next
// one in the kernel itself.
//
// A caller whose call is the only one of the process, as the last ones were, reads
// its answer from a shared connection itself (Pending.Attend), for 2 ms at the most:
// then nobody has to be woken but its thread, by the kernel.
package transport
