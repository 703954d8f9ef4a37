"""Commands about finished runs: report, explore, export."""
