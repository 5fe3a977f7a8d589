"""What a platform's Prometheus and Grafana are given: whom to scrape, when to page, what to show."""
