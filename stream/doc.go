// Package stream is the synchronized queue: records in order, handed out to
// whoever came first, over rows that are kept elsewhere.
//
// Queue is its deterministic core: it neither locks nor waits nor knows the
// time. Line is the waiting line without a goroutine per waiter. Stream puts
// both under one mutex: the queue for the goroutines of one process.
//
// # Where a record stands
//
//	      head                cursor                  tail
//	        |                    |                      |
//	gone    | out, out, gone ... | ready, ready, ready  |
//
//	          Append
//	 (nothing) -----> ready --Lease--> leased --Ack--> gone
//	                    |  ^             |
//	                Take|  +---Return----+
//	                    v    (in front of the cursor)
//	                   gone
//
// A record in front of the cursor lives only while it stands among the outs:
// leased, or returned and ready again. Taking moves the cursor and no row; the
// rows of what is gone are removed in bulk.
//
// Invariants, which the tests check after every step:
//
//  1. head <= cursor <= tail, and nothing in front of head lives.
//  2. Ready = the returned outs + the records from cursor on.
//  3. Leased = the outs that are leased; Returned = those that are not.
//  4. Bytes = the lengths of all ready and leased records.
//  5. The window is a prefix of the records from cursor on.
//  6. Rows in front of Cleaned are those of outs, or kept for an answer.
package stream
